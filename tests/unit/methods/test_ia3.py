"""(IA)3 on every form of layer, and which channels it takes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segtune.errors import NoSiteError
from segtune.methods.apply import apply
from segtune.methods.attach import attach
from segtune.methods.ia3 import Ia3Settings, InputScale, OutputScale
from segtune.methods.layers import has_plain_forward
from segtune.types import Access, Part, Site, SiteKind


def forms(layer):
    return ["weight", "output"] if has_plain_forward(layer) else ["weight"]


def axis_of(layer):
    return -1 if isinstance(layer, nn.Linear) else 1


@pytest.mark.parametrize("ranges", [((0, 2), (4, 7)), None])
def test_both_forms_multiply_the_output_and_fold(layer, x, ranges):
    num = layer(x).shape[axis_of(layer)]
    chosen = ((0, num),) if ranges is None else ranges
    index = [i for first, end in chosen for i in range(first, end)]
    expected = layer(x).clone().movedim(axis_of(layer), -1)
    factors = torch.rand(len(index), dtype=torch.float64) + 0.5
    for position, channel in enumerate(index):
        expected[..., channel] *= factors[position]
    expected = expected.movedim(-1, axis_of(layer))
    for form in forms(layer):
        own = copy.deepcopy(layer)
        operation = OutputScale(own, ranges=chosen, axis=axis_of(own), form=form).double()
        assert operation.scale.shape == (len(index),)
        operation.scale.data = factors.clone()
        merged = copy.deepcopy(own)
        attach(own, "ia3", operation)
        assert torch.allclose(own(x), expected, atol=1e-12), form
        with torch.no_grad():
            operation.fold(merged)
        assert torch.allclose(merged(x), expected, atol=1e-12), form
        assert list(merged.state_dict()) == list(layer.state_dict())


@pytest.mark.parametrize("form", ["input", "weight"])
def test_the_hidden_layer_is_scaled_behind_its_activation(form):
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 4)).double()
    operation = InputScale(mlp[2], form=form).double()
    operation.scale.data.uniform_(0.5, 2)
    x = torch.randn(3, 4).double()
    expected = mlp[2](operation.scale * mlp[1](mlp[0](x)))
    merged = copy.deepcopy(mlp)
    attach(mlp[2], "ia3", operation)
    assert torch.allclose(mlp(x), expected, atol=1e-12)
    with torch.no_grad():
        operation.fold(merged[2])
    assert torch.allclose(merged(x), expected, atol=1e-12)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.fc1 = nn.Linear(4, 9)
        self.fc2 = nn.Linear(9, 4)


def sites_of(block, splits):
    common = {"part": Part.ENCODER, "channel_axis": -1, "block": 0}
    return [
        Site(name="qkv", kind=SiteKind.ATTENTION_QKV, module=block.qkv, splits=splits, **common),
        Site(name="fc1", kind=SiteKind.MLP, module=block.fc1, **common),
        Site(name="fc2", kind=SiteKind.MLP, module=block.fc2, **common),
    ]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ((("q", 0, 4), ("k", 4, 8), ("v", 8, 12)), {"qkv": 8, "fc2": 9}),
        ((("v", 0, 12),), {"qkv": 12, "fc2": 9}),
        ((("q", 0, 12),), {"fc2": 9}),
        ((), {"qkv": 12, "fc2": 9}),
    ],
)
def test_keys_values_and_the_hidden_layer_are_chosen_by_the_named_ranges(splits, expected):
    block = Block()
    applied = apply(block, sites_of(block, splits), {"ia3": Ia3Settings()})
    found = {name.partition(".")[0]: p.numel() for name, p in applied.parameters().items()}
    assert found == expected


def test_a_model_with_queries_alone_is_refused():
    block = Block()
    with pytest.raises(NoSiteError, match="ia3"):
        apply(block, sites_of(block, (("q", 0, 12),))[:1], {"ia3": Ia3Settings()})


def test_a_layer_whose_weight_and_bias_are_read_is_scaled():
    layer = nn.Linear(4, 12).double()
    site = Site(
        name="", kind=SiteKind.LINEAR, module=layer, part=Part.ENCODER, channel_axis=-1, access=Access.WEIGHT
    )
    x = torch.randn(2, 4).double()
    expected = 2 * layer(x)
    applied = apply(layer, [site], {"ia3": Ia3Settings(kinds=("linear",))})
    applied.operations[0].scale.data.fill_(2.0)
    assert torch.allclose(nn.functional.linear(x, layer.weight, layer.bias), expected, atol=1e-6)
