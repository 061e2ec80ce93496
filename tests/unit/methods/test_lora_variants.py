"""LoRA+, LoRA-FA and interpolated LoRA: what sets each apart from LoRA."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from segtune.config.run import OptimSettings
from segtune.engine.optim import build_optimizer, set_rate
from segtune.methods import METHODS
from segtune.methods.apply import apply
from segtune.methods.attach import attach, own_weight
from segtune.methods.interpolated_lora import InterpolatedLoraOperation, InterpolatedLoraSettings
from segtune.methods.lora import factor_shape
from segtune.types import Part, Site, SiteKind


def applied_to(layer, method, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(layer)
    kind = SiteKind.LINEAR if isinstance(layer, nn.Linear) else SiteKind.CONV
    site = Site(name="0", kind=kind, module=layer, part=Part.ENCODER)
    return model, apply(model, [site], {method: METHODS.settings(method)(**settings)})


# --- LoRA+ ------------------------------------------------------------------------------------------


def test_b_gets_a_multiple_of_the_learning_rate():
    _, applied = applied_to(nn.Linear(4, 4), "lora-plus", rate_ratio=8, rank=2)
    up, down = "0.adapters.lora-plus.up", "0.adapters.lora-plus.down"
    assert applied.rate_factors() == {down: 1.0, up: 8.0}
    vector = nn.Parameter(torch.zeros(3))
    parameters = {**applied.parameters(), "norm": vector}
    optimizer = build_optimizer(parameters, OptimSettings(), 0.1, applied.rate_factors())
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {parameters[down]: 0.1, parameters[up]: 0.8, vector: 0.1}
    set_rate(optimizer, 0.01)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == pytest.approx({parameters[down]: 0.01, parameters[up]: 0.08, vector: 0.01})
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[vector] == 0 and decays[parameters[up]] == decays[parameters[down]]


def test_the_factors_come_back_with_the_optimisers_state():
    _, applied = applied_to(nn.Linear(4, 4), "lora-plus")
    make = lambda: build_optimizer(applied.parameters(), OptimSettings(), 0.1, applied.rate_factors())  # noqa: E731
    first, second = make(), make()
    second.load_state_dict(first.state_dict())
    set_rate(second, 1.0)
    assert sorted(group["lr"] for group in second.param_groups) == [1.0, 16.0]


def test_an_sgd_step_moves_b_further_by_the_ratio():
    steps = []
    for ratio in (1.0, 4.0):
        model, applied = applied_to(nn.Linear(4, 4), "lora-plus", rate_ratio=ratio)
        settings = OptimSettings(name="sgd", momentum=0, weight_decay=0)
        optimizer = build_optimizer(applied.parameters(), settings, 0.1, applied.rate_factors())
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        steps.append(applied.parameters()["0.adapters.lora-plus.up"].detach().clone())
    assert torch.allclose(steps[1], 4 * steps[0])


# --- LoRA-FA ----------------------------------------------------------------------------------------


def test_a_is_saved_and_not_trained():
    _, applied = applied_to(nn.Linear(6, 10), "lora-fa", rank=3)
    assert {name: tuple(p.shape) for name, p in applied.parameters().items()} == {
        "0.adapters.lora-fa.up": (10, 3)
    }
    assert applied.state_dict()["0.adapters.lora-fa.down"].shape == (3, 6)
    assert applied.counts()["adapter"] == 30
    assert applied.num_bytes() == 4 * (30 + 18)


def test_the_branch_keeps_r_channels_instead_of_the_input():
    def kept(method):
        model, _ = applied_to(nn.Linear(64, 8), method, rank=2)
        model[0].weight.requires_grad_(False)
        sizes = []
        x = torch.randn(16, 64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.shape) or t, lambda t: t):
            model(x)
        return [size for size in sizes if size[0] == 16]

    assert (16, 64) in kept("lora")
    assert (16, 64) not in kept("lora-fa") and (16, 2) in kept("lora-fa")


# --- interpolated LoRA ------------------------------------------------------------------------------


def test_the_weight_is_the_mixture_and_folds(layer, x):
    operation = InterpolatedLoraOperation(layer, rank=2, scale=0.7, start=0.9, ranges=None).double()
    nn.init.normal_(operation.up)
    product = 0.7 * operation.up.data @ operation.down.data
    reference, merged = copy.deepcopy(layer), copy.deepcopy(layer)
    weight = own_weight(reference).data
    if isinstance(layer, nn.ConvTranspose2d):
        change = product.view(weight.shape[1], weight.shape[0], *weight.shape[2:]).transpose(0, 1)
    else:
        change = product.view(weight.shape)
    share = operation.share.item()
    weight.copy_(share * weight + (1 - share) * change)
    attach(layer, "interpolated", operation)
    assert torch.allclose(layer(x), reference(x), atol=1e-12)
    with torch.no_grad():
        operation.fold(merged)
    assert torch.allclose(merged(x), reference(x), atol=1e-12)


def test_the_gradient_of_b_is_proportional_to_one_minus_a(layer):
    gradients = []
    for start in (0.0, 0.75):
        own = copy.deepcopy(layer)
        torch.manual_seed(3)
        operation = InterpolatedLoraOperation(own, rank=2, scale=1.0, start=start, ranges=None).double()
        attach(own, "interpolated", operation)
        direction = torch.arange(own.weight.numel(), dtype=torch.float64).view(own.weight.shape)
        (own.weight * direction).sum().backward()
        gradients.append(operation.up.grad)
        assert operation.up.shape == (factor_shape(layer)[0], 2)
    assert torch.allclose(gradients[1], 0.25 * gradients[0])


def test_a_dead_start_is_refused():
    with pytest.raises(ValidationError):
        InterpolatedLoraSettings(start=1)


def test_a_leaves_its_start_by_itself():
    model, applied = applied_to(nn.Linear(6, 6), "interpolated-lora")
    x, y = torch.randn(32, 6), torch.randn(32, 6)
    optimizer = torch.optim.Adam(applied.parameters().values(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert 1 - applied.parameters()["0.adapters.interpolated-lora.share"].item() > 1e-2


def test_targets_leave_the_other_outputs_as_they_are():
    layer = nn.Linear(5, 12)
    operation = InterpolatedLoraOperation(layer, rank=2, scale=1.0, start=0.5, ranges=((4, 8),))
    before = own_weight(layer).clone()
    attach(layer, "interpolated", operation)
    assert (layer.weight != before).any(dim=1).tolist() == [False] * 4 + [True] * 4 + [False] * 4
