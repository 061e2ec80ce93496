"""DoRA against its formula written out channel by channel."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segtune.methods.apply import apply
from segtune.methods.attach import attach, own_weight
from segtune.methods.dora import DoraOperation, DoraSettings
from segtune.methods.lora import factor_shape
from segtune.types import Part, Site, SiteKind


def trained(layer, ranges=None):
    torch.manual_seed(2)
    operation = DoraOperation(layer, rank=2, scale=0.7, ranges=ranges).double()
    nn.init.normal_(operation.up)
    nn.init.uniform_(operation.magnitude, -0.1, 0.3)
    return operation


def low_rank(layer, operation):
    """`W0 + s B A`, for transposed convolutions element by element."""
    weight = own_weight(layer).detach().clone()
    product = operation.scale * operation.up @ operation.down
    if isinstance(layer, nn.ConvTranspose2d):
        return weight + product.view(weight.shape[1], weight.shape[0], *weight.shape[2:]).transpose(0, 1)
    return weight + product.view(weight.shape)


def test_the_weight_has_the_learned_lengths_and_folds(layer, x, weight_by_output):
    operation = trained(layer)
    base, changed = own_weight(layer).detach().clone(), low_rank(layer, operation)
    expected = base.clone()
    for channel, index in weight_by_output(layer):
        length = base[index].pow(2).sum().sqrt() + operation.magnitude[channel]
        expected[index] = length * changed[index] / changed[index].pow(2).sum().sqrt()
    merged, reference = copy.deepcopy(layer), copy.deepcopy(layer)
    own_weight(reference).data.copy_(expected)
    attach(layer, "dora", operation)
    assert torch.allclose(layer(x), reference(x), atol=1e-12)
    with torch.no_grad():
        operation.fold(merged)
    assert torch.allclose(merged(x), reference(x), atol=1e-12)


def test_the_length_in_the_denominator_is_a_constant_for_the_gradient(layer, weight_by_output):
    operation = trained(layer)
    base, changed = own_weight(layer).detach().clone(), low_rank(layer, operation).detach()
    ratios = {
        channel: (base[index].norm() + operation.magnitude[channel].item()) / changed[index].norm()
        for channel, index in weight_by_output(layer)
    }
    attach(layer, "dora", operation)
    gradient = torch.randn(own_weight(layer).shape, dtype=torch.float64)
    (layer.weight * gradient).sum().backward()
    through, magnitude = gradient.clone(), torch.empty_like(operation.magnitude)
    for channel, index in weight_by_output(layer):
        through[index] *= ratios[channel]
        magnitude[channel] = (gradient[index] * changed[index]).sum() / changed[index].norm()
    if isinstance(layer, nn.ConvTranspose2d):
        through = through.transpose(0, 1)
    matrix = through.reshape(factor_shape(layer))
    assert torch.allclose(operation.up.grad, operation.scale * matrix @ operation.down.T, atol=1e-9)
    assert torch.allclose(operation.magnitude.grad, magnitude, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_the_base_bit_for_bit_in_every_layout_and_type(layer, dtype):
    layer = layer.to(dtype)
    if own_weight(layer).ndim == 4:
        layer = layer.to(memory_format=torch.channels_last)
    before = own_weight(layer).clone()
    attach(layer, "dora", DoraOperation(layer, rank=2, scale=1.0, ranges=None))
    assert torch.equal(layer.weight, before)


def test_a_channel_of_zeros_stays_finite():
    layer = nn.Linear(4, 3)
    layer.weight.data[1] = 0
    operation = DoraOperation(layer, rank=2, scale=1.0, ranges=None)
    attach(layer, "dora", operation)
    y = layer(torch.randn(2, 4))
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(operation.up.grad).all()


def test_targets_leave_the_other_outputs_alone():
    model = nn.Sequential(nn.Linear(5, 12))
    splits = (("q", 0, 4), ("k", 4, 8), ("v", 8, 12))
    site = Site(name="0", kind=SiteKind.ATTENTION_QKV, module=model[0], part=Part.ENCODER, splits=splits)
    before = own_weight(model[0]).clone()
    applied = apply(model, [site], {"dora": DoraSettings(rank=2, targets=("q", "v"))})
    assert applied.counts()["adapter"] == 2 * (8 + 5) + 8
    for parameter in applied.parameters().values():
        parameter.data.add_(torch.rand_like(parameter))
    moved = (model[0].weight != before).any(dim=1)
    assert moved.tolist() == [True] * 4 + [False] * 4 + [True] * 4
