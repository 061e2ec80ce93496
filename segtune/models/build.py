"""Builds a model by name, with random weights that depend on the seed alone."""

from __future__ import annotations

import torch

from segtune.errors import UsageError
from segtune.models import MODELS
from segtune.models.base import SegModel
from segtune.settings import Settings


def build_model(
    name: str,
    num_classes: int,
    settings: Settings | None = None,
    *,
    seed: int = 0,
    meta: bool = False,
) -> SegModel:
    """Builds a registered model with random weights; nothing is downloaded.

    Args:
        name: a name of the model registry.
        num_classes: K, at least 2.
        settings: the model's settings; the defaults where None.
        seed: seed of the initialisation; the global random state is left alone.
        meta: build on the meta device: shapes and sites without memory, for counting only.

    Returns:
        The model, in training mode.

    Raises:
        UnknownNameError: no model of that name.
        UsageError: fewer than two classes.
    """
    if num_classes < 2:
        raise UsageError(
            f"a model needs at least 2 classes, not {num_classes}",
            hint="binary segmentation has two: background and foreground",
        )
    build = MODELS.load(name)
    chosen = MODELS.settings(name)() if settings is None else settings
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        # Not torch.manual_seed: it would reseed the accelerators too.
        torch.default_generator.manual_seed(seed)
        model: SegModel = build(name, num_classes, chosen)
    # Libraries make a few tensors on the CPU whatever the default device is.
    return model.to("meta") if meta else model
