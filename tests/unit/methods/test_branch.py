"""The branch's sum in place of the output: the same numbers and gradients as the sum written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segtune.methods import branch
from segtune.methods.branch import add_product, as_computed

SCALE = 0.5


def inputs(shape: tuple[int, ...], rank: int, outputs: int, channel_axis: int, dtype: torch.dtype):
    """x with `rank` channels, B, and y with `outputs` channels as a layer makes it."""
    generator = torch.Generator().manual_seed(len(shape))
    low_shape = (*shape, rank) if channel_axis == -1 else (shape[0], rank, *shape[1:])
    low = torch.randn(low_shape, generator=generator, dtype=dtype)
    up = torch.randn(outputs, rank, generator=generator)
    bias = torch.randn(outputs, generator=generator, dtype=dtype)
    if channel_axis == 1:
        low = low.contiguous(memory_format=torch.channels_last)
    return low.requires_grad_(), up.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("large", [0, 2**30], ids=["in place", "copied"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "channel_axis"), [((5,), -1), ((2, 3, 4), -1), ((2, 3, 4), 1), ((2, 1, 1), 1)]
)
def test_sum_and_gradients_are_those_of_the_formula(shape, channel_axis, dtype, large, monkeypatch):
    monkeypatch.setattr(branch, "LARGE", large)
    low, up, bias = inputs(shape, 3, 6, channel_axis, dtype)
    places = low.movedim(channel_axis, -1)
    shared = places @ up.detach().to(dtype).T + bias  # stands for a layer's output that a gradient passes

    expected = (shared + SCALE * places @ up.to(dtype).T).movedim(-1, channel_axis)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weights).sum(), (low, up, bias), retain_graph=True)

    got = add_product(shared.movedim(-1, channel_axis), low, up, SCALE, channel_axis)
    assert got.dtype == dtype
    found = torch.autograd.grad((got * weights).sum(), (low, up, bias))
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for one, other in zip((got, *found), (expected, *wanted), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def test_the_output_of_a_layer_is_not_copied(monkeypatch):
    monkeypatch.setattr(branch, "LARGE", 0)
    layer = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 5, 6).contiguous(memory_format=torch.channels_last)
    y, low = layer(images), F.avg_pool2d(images, 1)
    place = y.data_ptr()
    total = add_product(y, low, torch.randn(4, 3), 1.0, channel_axis=1)
    assert total.data_ptr() == place
    F.relu_(total).sum().backward()  # what follows may work in place as well
    assert layer.weight.grad is not None


def test_an_input_is_rounded_under_autocast_only():
    x = torch.randn(2, 3)
    assert as_computed(x) is x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert as_computed(x).dtype == torch.bfloat16
        assert as_computed(x.double()).dtype == torch.float64
