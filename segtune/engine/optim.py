"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from segtune.config.run import OptimSettings


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], settings: OptimSettings, rate: float
) -> torch.optim.Optimizer:
    """An optimiser over the trained parameters; vectors (norms, biases) do not decay.

    Args:
        parameters: by name; at least one.
        settings: which optimiser.
        rate: peak learning rate.
    """
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups = [
        {"params": chosen, "weight_decay": decay}
        for chosen, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        if chosen
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate, betas=settings.betas)


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
