"""The branch of a low-rank change, `y + s B low`, without a copy of the layer's output.

Written as a sum, the branch copies the output, and its gradients are products of tall matrices in the
slower of two orders: the gradient of B takes ten times as long as here (docs/decisions/0022-speed.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segtune.methods.attach import full_precision

LARGE = 2**18
"""Numbers in an output from which copying it costs more than what is called to avoid it."""


def as_computed(x: Tensor) -> Tensor:
    """A layer's input in autocast's type: rounded once for the layer and its branch, not by each of them."""
    device = x.device.type
    if x.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def add_product(y: Tensor, low: Tensor, up: Tensor, scale: float, channel_axis: int = -1) -> Tensor:
    """`y + s B low`; takes the memory of y, which nobody else may hold or need for a backward pass.

    Args:
        y: what a linear layer or a convolution has just put out, with its O channels side by side in memory.
        low: the same shape with r channels.
        up: B [O, r].
        scale: s.
        channel_axis: of y and low: -1 or 1.

    Returns:
        The sum, in the type of y.
    """
    low = low.to(y.dtype)
    if y.numel() < LARGE or torch.compiler.is_compiling():  # a compiler knows by itself what to copy
        rows = _matrix(y, channel_axis), _matrix(low, channel_axis)
        places = torch.addmm(*rows, up.to(y.dtype).T, alpha=scale)
        return places.view(y.movedim(channel_axis, -1).shape).movedim(-1, channel_axis)
    with full_precision(y.device):
        total: Tensor = _AddProduct.apply(y, low, up, scale, channel_axis)
    return total


def _matrix(x: Tensor, channel_axis: int) -> Tensor:
    """One row for each place."""
    return x.movedim(channel_axis, -1).reshape(-1, x.shape[channel_axis])


class _AddProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, low: Tensor, up: Tensor, scale: float, channel_axis: int) -> Tensor:
        ctx.save_for_backward(low, up)
        ctx.scale, ctx.channel_axis = scale, channel_axis
        total = y.detach()
        places = total.movedim(channel_axis, -1).view(-1, len(up))
        places.addmm_(_matrix(low, channel_axis), up.to(y.dtype).T, alpha=scale)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        low, up = ctx.saved_tensors
        above = _matrix(grad, ctx.channel_axis)
        grad_low = grad_up = None
        if ctx.needs_input_grad[1]:
            part = torch.mm((up.to(above.dtype) * ctx.scale).T, above.T).T
            shape = low.movedim(ctx.channel_axis, -1).shape
            grad_low = part.view(shape).movedim(-1, ctx.channel_axis)
        if ctx.needs_input_grad[2]:
            product = torch.mm(_matrix(low, ctx.channel_axis).T, above)
            grad_up = product.T.to(up.dtype).mul_(ctx.scale)
        return grad, grad_low, grad_up, None, None
