"""PiSSA: the start, the function, and what is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segtune.methods.apply import apply
from segtune.methods.attach import attach, own_weight
from segtune.methods.lora import branch_possible, factor_shape
from segtune.methods.pissa import PissaOperation, PissaSettings
from segtune.types import Access, Part, Site, SiteKind


def matrix_of(layer):
    weight = own_weight(layer).detach()
    return (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).reshape(
        factor_shape(layer)
    )


def forms(layer):
    return ["weight", "branch"] if branch_possible(layer, Access.CALL) else ["weight"]


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_it_starts_from_the_largest_singular_vectors(layer, scale):
    torch.manual_seed(0)
    operation = PissaOperation(layer, rank=3, scale=scale, form="weight", ranges=None)
    left, values, right = torch.linalg.svd(matrix_of(layer), full_matrices=False)
    principal = left[:, :3] * values[:3] @ right[:3]
    product = scale * operation.first_up.double() @ operation.first_down.double()
    assert torch.allclose(product, principal, atol=1e-5)
    # each side takes the root of the singular values
    assert torch.allclose(operation.first_up.norm(dim=0).double(), (values[:3] / scale).sqrt(), atol=1e-5)


def test_the_start_is_the_base_bit_for_bit(layer, x):
    layer, x = layer.float(), x.float()
    before = layer(x)
    for form in forms(layer):
        own = copy.deepcopy(layer)
        attach(own, "pissa", PissaOperation(own, rank=2, scale=1.0, form=form, ranges=None))
        assert torch.equal(own(x), before), form


def test_both_forms_are_the_residual_and_the_trained_product_and_fold(layer, x):
    for form in forms(layer):
        own = copy.deepcopy(layer)
        operation = PissaOperation(own, rank=2, scale=0.5, form=form, ranges=None).double()
        nn.init.normal_(operation.up)
        nn.init.normal_(operation.down)
        residual = matrix_of(layer) - 0.5 * operation.first_up @ operation.first_down
        matrix = residual + 0.5 * operation.up.data @ operation.down.data
        reference, merged = copy.deepcopy(layer), copy.deepcopy(layer)
        weight = own_weight(reference).data
        if isinstance(layer, nn.ConvTranspose2d):
            inputs, outputs, *kernel = weight.shape
            weight.copy_(matrix.view(outputs, inputs, *kernel).transpose(0, 1))
        else:
            weight.copy_(matrix.view(weight.shape))
        attach(own, "pissa", operation)
        assert torch.allclose(own(x), reference(x), atol=1e-12), form
        with torch.no_grad():
            operation.fold(merged)
        assert torch.allclose(merged(x), reference(x), atol=1e-12), form


def test_both_products_are_saved_and_one_is_trained():
    model = nn.Sequential(nn.Linear(6, 10))
    site = Site(name="0", kind=SiteKind.LINEAR, module=model[0], part=Part.ENCODER)
    base = own_weight(model[0]).clone()
    applied = apply(model, [site], {"pissa": PissaSettings(rank=3)})
    assert applied.counts()["adapter"] == 3 * 16
    assert applied.num_bytes() == 4 * 2 * 3 * 16
    assert torch.equal(own_weight(model[0]), base)


def test_a_thin_weight_gets_the_rank_that_it_can_have():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))
    site = Site(name="0", kind=SiteKind.CONV, module=model[0], part=Part.ENCODER)
    applied = apply(model, [site], {"pissa": PissaSettings(rank=32)})
    assert applied.counts()["adapter"] == 8 * (8 + 9)


def test_targets_are_decomposed_alone():
    model = nn.Sequential(nn.Linear(5, 12))
    splits = (("q", 0, 4), ("k", 4, 8), ("v", 8, 12))
    site = Site(name="0", kind=SiteKind.ATTENTION_QKV, module=model[0], part=Part.ENCODER, splits=splits)
    applied = apply(model, [site], {"pissa": PissaSettings(rank=4, targets=("k",))})
    (operation,) = applied.operations
    product = operation.first_up @ operation.first_down
    assert torch.allclose(product, own_weight(model[0])[4:8], atol=1e-5)
    x = torch.randn(3, 5)
    before = model(x)
    nn.init.normal_(operation.up)
    assert (model(x) != before).any(dim=0).tolist() == [False] * 4 + [True] * 4 + [False] * 4
