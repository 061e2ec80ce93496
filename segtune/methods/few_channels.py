"""Convolutions of a few channels on a CPU, whose gradients would take several times as long as they need.

PyTorch's gradient of a convolution's input is made for many channels: with 3 of them it takes ten times the
forward pass. Here it is another forward convolution, or a product of matrices (docs/decisions/0022-speed.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGE = 2**11
"""Pixels from which a function of our own is faster than what calling it costs."""


def convolve(
    x: Tensor,
    kernels: Tensor,
    bias: Tensor,
    *,
    padding: int = 0,
    gelu: bool,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over phases p of `weight_p * GELU(conv(x, K_p) + bias)`, outside of autocast, in one type.

    Args:
        x: [B, r, H, W].
        kernels: [r P, r, l, l], the P phases of an output channel side by side.
        bias: [r].
        padding: pixels of zeros on every side.
        gelu: whether a GELU follows the convolution.
        weights: [P], constants; None: P = 1 with weight 1.

    Returns:
        [B, r, h, w] with h = H - l + 1 + 2 padding, and w like it.
    """
    large = x.numel() >= LARGE * x.shape[1]
    if large and x.is_cpu and not torch.compiler.is_compiling():
        y: Tensor = _Convolve.apply(x, kernels, bias, padding, gelu, weights)
        return y
    y = _convolved(x, kernels, bias, padding)
    return _summed(F.gelu(y) if gelu else y, weights)


def _convolved(x: Tensor, kernels: Tensor, bias: Tensor, padding: int) -> Tensor:
    num_phases = len(kernels) // len(bias)
    return F.conv2d(x, kernels, bias[:, None].expand(-1, num_phases).flatten(), padding=padding)


def _summed(y: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return y
    batch, channels, height, width = y.shape
    phases = y.view(batch * channels // len(weights), len(weights), height * width)
    return torch.matmul(weights, phases).view(batch, channels // len(weights), height, width)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernels: Tensor,
        bias: Tensor,
        padding: int,
        gelu: bool,
        weights: Tensor | None,
    ) -> Tensor:
        y = _convolved(x, kernels, bias, padding)
        ctx.padding = padding
        ctx.save_for_backward(x, kernels, weights, y if gelu else None)
        return _summed(F.gelu(y) if gelu else y, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels, weights, y = ctx.saved_tensors
        if weights is not None:
            grad = (grad[:, :, None] * weights[:, None, None]).flatten(1, 2)
        if y is not None:
            grad = torch.ops.aten.gelu_backward(grad, y)
        grad = grad.contiguous()
        rank, pad = kernels.shape[1], [ctx.padding] * 2
        _, of_kernels, of_bias = torch.ops.aten.convolution_backward(
            grad, x, kernels, [len(kernels)], [1, 1], pad, [1, 1], False, [0, 0], 1, [False, True, True]
        )
        of_bias = of_bias.view(rank, -1).sum(1)
        of_x = _of_input(grad, kernels, ctx.padding) if ctx.needs_input_grad[0] else None
        return of_x, of_kernels, of_bias, None, None, None


def _of_input(grad: Tensor, kernels: Tensor, padding: int) -> Tensor:
    """Gradient [B, r, H, W] of a convolution's input, given that of its output [B, r P, h, w]."""
    num_outputs, rank, size, _ = kernels.shape
    if num_outputs == rank:
        return F.conv2d(grad, kernels.flip(2, 3).transpose(0, 1), padding=size - 1 - padding)
    assert not padding
    batch, _, height, width = grad.shape
    places = grad.flatten(2)
    # by rows of the kernel: all of it at once would be l l r maps
    rows = grad.new_zeros(batch, rank * size, (height + size - 1) * width)
    for row, kernel in enumerate(kernels.permute(2, 1, 3, 0).reshape(size, rank * size, num_outputs)):
        here = slice(row * width, (row + height) * width)
        rows[:, :, here].baddbmm_(kernel.expand(batch, -1, -1), places)
    rows = rows.view(batch, rank, size, height + size - 1, width)
    total = grad.new_zeros(batch, rank, height + size - 1, width + size - 1)
    for column in range(size):
        total[..., column : column + width] += rows[:, :, column]
    return total
