"""Schedules against their formulas; vectors do not decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from segtune.config.run import OptimSettings
from segtune.engine.optim import build_optimizer, rate_factor

STEPS = 40


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_schedule(schedule: str, warmup: float) -> None:
    settings = OptimSettings(schedule=schedule, warmup=warmup, poly_power=0.9)  # type: ignore[arg-type]
    first = round(warmup * STEPS)
    for step in range(STEPS):
        got = rate_factor(settings, step, STEPS)
        share = (step - first) / (STEPS - first)
        want = {
            "cosine": 0.5 + 0.5 * math.cos(math.pi * share),
            "poly": (1 - share) ** 0.9 if share <= 1 else 0,
            "constant": 1.0,
        }[schedule]
        if step < first:
            want = (step + 1) / (first + 1)
        assert got == pytest.approx(want, rel=1e-12)
        assert 0 < got <= 1


@pytest.mark.parametrize("warmup", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_short_runs_learn_in_every_step(num_steps: int, warmup: float) -> None:
    for schedule in ("cosine", "poly", "constant"):
        settings = OptimSettings(schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
        assert all(0 < rate_factor(settings, step, num_steps) <= 1 for step in range(num_steps))


def test_vectors_do_not_decay() -> None:
    module = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    optimizer = build_optimizer(dict(module.named_parameters()), OptimSettings(weight_decay=0.1), 1e-3)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {id(p): 0.1 if p.ndim > 1 else 0.0 for p in module.parameters()}


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimisers_get_their_settings(name: str, kind: type[torch.optim.Optimizer]) -> None:
    settings = OptimSettings(name=name, betas=(0.7, 0.8), momentum=0.3)  # type: ignore[arg-type]
    optimizer = build_optimizer({"w": nn.Parameter(torch.zeros(2, 2))}, settings, 0.25)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.25
    assert group.get("momentum", 0.3) == 0.3
    assert group.get("betas", (0.7, 0.8)) == (0.7, 0.8)
