"""SSF behind every form of layer and norm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segtune.errors import MergeError
from segtune.methods.apply import apply
from segtune.methods.attach import attach
from segtune.methods.layers import has_plain_forward
from segtune.methods.ssf import SsfOperation, SsfSettings
from segtune.types import Access, Part, Site, SiteKind

NORMS = {
    "batch": (lambda: nn.BatchNorm2d(6), 1),
    "group": (lambda: nn.GroupNorm(2, 6), 1),
    "instance": (lambda: nn.InstanceNorm2d(6, affine=True), 1),
    "layer": (lambda: nn.LayerNorm(11), -1),
}


def check(layer, x, *, shift, axis, form):
    operation = SsfOperation(layer, shift=shift, axis=axis, form=form).double()
    operation.scale.data.uniform_(0.5, 2)
    if shift:
        operation.shift.data.normal_()
    expected = layer(x).detach().clone().movedim(axis, -1)
    for channel in range(expected.shape[-1]):
        expected[..., channel] *= operation.scale[channel].item()
        expected[..., channel] += operation.shift[channel].item() if shift else 0.0
    expected = expected.movedim(-1, axis)
    keys, merged = list(layer.state_dict()), copy.deepcopy(layer)
    attach(layer, "ssf", operation)
    assert torch.allclose(layer(x), expected, atol=1e-12), form
    assert operation.merge_refusal() is None
    with torch.no_grad():
        operation.fold(merged)
    assert torch.allclose(merged(x), expected, atol=1e-12), form
    return keys, list(merged.state_dict())


@pytest.mark.parametrize("shift", [True, False])
def test_both_forms_scale_and_shift_and_fold(layer, x, shift):
    axis = -1 if isinstance(layer, nn.Linear) else 1
    for form in ["weight", "output"] if has_plain_forward(layer) else ["weight"]:
        before, after = check(copy.deepcopy(layer), x, shift=shift, axis=axis, form=form)
        gains_bias = shift and layer.bias is None
        assert set(after) - set(before) == ({"bias"} if gains_bias else set())


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_scaled_and_shifted_and_fold(name, x):
    make, axis = NORMS[name]
    norm = make().double().eval()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    assert check(norm, x, shift=True, axis=axis, form="output")


def sites_of(model):
    kinds = {nn.Conv2d: SiteKind.CONV, nn.BatchNorm2d: SiteKind.NORM, nn.RMSNorm: SiteKind.NORM}
    return [
        Site(name=str(i), kind=kinds[type(layer)], module=layer, part=Part.ENCODER)
        for i, layer in enumerate(model)
    ]


def test_a_layer_without_bias_is_only_scaled_unless_asked_for():
    def counts(**settings):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))
        applied = apply(model, sites_of(model), {"ssf": SsfSettings(**settings)})
        return model, applied, applied.counts()["adapter"]

    assert counts()[2] == 4 + 8 + 10
    model, applied, num = counts(shift_without_bias=True)
    assert num == 8 + 8 + 10
    keys = set(copy.deepcopy(model[0].state_dict()))
    applied.merge()
    assert set(model[0].state_dict()) - keys == {"bias"} and type(model[0]) is nn.Conv2d


def test_a_shift_behind_a_norm_that_cannot_have_one_is_not_merged():
    model = nn.Sequential(nn.RMSNorm(4))
    applied = apply(model, sites_of(model), {"ssf": SsfSettings(shift_without_bias=True)})
    with pytest.raises(MergeError, match="RMSNorm has no bias"):
        applied.merge()


def test_a_layer_whose_weight_and_bias_are_read_is_changed():
    layer = nn.Linear(4, 3).double()
    site = Site(name="", kind=SiteKind.LINEAR, module=layer, part=Part.ENCODER, access=Access.WEIGHT)
    x = torch.randn(2, 4).double()
    expected = 2 * layer(x) + 3
    applied = apply(layer, [site], {"ssf": SsfSettings()})
    applied.operations[0].scale.data.fill_(2)
    applied.operations[0].shift.data.fill_(3)
    assert torch.allclose(nn.functional.linear(x, layer.weight, layer.bias), expected, atol=1e-6)
