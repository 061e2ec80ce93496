"""Convolutions of few channels: the same numbers and gradients by our own function as by PyTorch's."""

from __future__ import annotations

import pytest
import torch

from segtune.methods import few_channels
from segtune.methods.few_channels import convolve

RANK = 3


@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize(("phases", "size", "padding"), [(1, 3, 1), (1, 5, 0), (4, 3, 0), (16, 5, 0)])
def test_output_and_gradients_are_those_of_pytorch(phases, size, padding, gelu, monkeypatch):
    generator = torch.Generator().manual_seed(phases)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, kernels, bias = drawn(2, RANK, 9, 11), drawn(RANK * phases, RANK, size, size), drawn(RANK)
    weights = drawn(phases).detach() if phases > 1 else None
    outcomes = []
    for large in (0, 2**30):
        monkeypatch.setattr(few_channels, "LARGE", large)
        y = convolve(x, kernels, bias, padding=padding, gelu=gelu, weights=weights)
        assert ("_Convolve" in str(y.grad_fn)) is (large == 0)
        outcomes.append((y, *torch.autograd.grad(y.square().sum(), (x, kernels, bias))))
    for own, other in zip(*outcomes, strict=True):
        assert own.shape == other.shape
        assert (own - other).abs().max() <= 1e-12 * other.abs().max()


def test_maps_without_a_gradient_get_none(monkeypatch):
    monkeypatch.setattr(few_channels, "LARGE", 0)
    x, kernels = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3, requires_grad=True)
    convolve(x, kernels, torch.zeros(2), gelu=True).sum().backward()
    assert x.grad is None and kernels.grad is not None
