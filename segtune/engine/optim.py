"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from segtune.config.run import OptimSettings


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    settings: OptimSettings,
    rate: float,
    factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """An optimiser over the trained parameters; vectors (norms, biases) do not decay.

    Args:
        parameters: by name; at least one.
        settings: which optimiser.
        rate: peak learning rate.
        factors: learning rate of a parameter as a multiple of the peak, by name; default 1.

    Returns:
        An optimiser whose groups hold their `factor`, for `set_rate`.
    """
    chosen: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        factor = 1.0 if factors is None else factors.get(name, 1.0)
        chosen.setdefault((factor, parameter.ndim <= 1), []).append(parameter)
    groups = [
        {
            "params": chosen[factor, is_vector],
            "lr": rate * factor,
            "factor": factor,
            "weight_decay": 0.0 if is_vector else settings.weight_decay,
        }
        for factor, is_vector in sorted(chosen)
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate, betas=settings.betas)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets a step's learning rate; each group takes its own multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def rate_factor(settings: OptimSettings, step: int, num_steps: int) -> float:
    """Learning rate of a step as a share of the peak.

    Args:
        settings: schedule and warm-up.
        step: from 0.
        num_steps: of the whole run.
    """
    warmup = round(settings.warmup * num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, num_steps - warmup)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "poly":
        return float((1 - progress) ** settings.poly_power)
    return 1.0
