"""Every method on every tiny model: the table that the contract tests run over.

A method inherits all contracts by being in the registry; a model by one entry in MODELS below.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from segtune.errors import NoSiteError
from segtune.methods import METHODS
from segtune.methods.apply import Applied, apply
from segtune.methods.base import MethodSettings
from segtune.models import MODELS as MODEL_REGISTRY
from segtune.models.base import SegModel
from segtune.models.build import build_model
from tests.contracts.tiny_attention import TinyAttention
from tests.contracts.tiny_sequence import TinySequence
from tests.contracts.tiny_transformers import tiny

NUM_CLASSES = 3
SIZE = (64, 96)

MODELS: dict[str, tuple[str | Callable[[int], SegModel], dict[str, object]]] = {
    "unet": ("unet", {"depth": 2, "width": 8}),
    "unet-bilinear": ("unet", {"depth": 2, "width": 8, "norm": "group", "up": "bilinear"}),
    "lraspp": ("lraspp_mobilenet_v3_large", {}),
    "deeplabv3": ("deeplabv3_mobilenet_v3_large", {}),
    "attention": (TinyAttention, {}),
    "sequence": (TinySequence, {}),
    "segformer": ("smp:segformer/mit_b0", {}),
    "sam": (
        "sam-vit-base",
        {
            "width": 32,
            "depth": 3,
            "heads": 2,
            "global_blocks": (1,),
            "window": 3,
            "image_size": 64,
            "decoder_width": 16,
        },
    ),
    **{name: (tiny(name), {}) for name in ("hf:upernet-swin", "hf:eomt", "hf-backbone:dinov2")},
    "sam2": (
        "sam2.1-hiera-tiny",
        {
            "width": 8,
            "blocks": (1, 1, 2, 1),
            "heads": (1, 1, 2, 2),
            "windows": (8, 4, 2, 1),
            "global_blocks": (3,),
            "background": 3,
            "decoder_width": 16,
        },
    ),
}


def _fresh(name: str) -> SegModel:
    registered, settings = MODELS[name]
    if isinstance(registered, str):
        model = build_model(registered, NUM_CLASSES, MODEL_REGISTRY.settings(registered)(**settings))
    else:
        model = registered(NUM_CLASSES)
    # running statistics as after some training, so that a frozen norm is not an identity
    generator = torch.Generator().manual_seed(1)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.2 - 0.1)
        elif key.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.1 + 0.1)
    return model.eval()


_pristine = functools.cache(_fresh)


def make_model(name: str) -> SegModel:
    """A tiny model of the table in eval mode, always with the same weights."""
    return copy.deepcopy(_pristine(name))  # building one anew takes up to 30 times as long


def parts_of(method: str, **settings: object) -> dict[str, MethodSettings]:
    """Settings of a method, or of several joined by "+"; each takes those that it has."""
    parts = {}
    for name in method.split("+"):
        schema = METHODS.settings(name)
        parts[name] = schema(**{k: v for k, v in settings.items() if k in schema.model_fields})
    return parts  # type: ignore[return-value]


def make_applied(model: SegModel, method: str, **settings: object) -> Applied:
    """Applies a method as the engine does."""
    applied = apply(model, model.sites(), parts_of(method, **settings), seed=5, unused=model.unused)
    model.penalty_layers = list(applied.operations)
    return applied


@functools.cache
def offers(model_name: str, method: str) -> bool:
    """Whether a model has sites of a method's default kinds."""
    try:
        make_applied(make_model(model_name), method)
    except NoSiteError:
        return False
    return True


def model_for(method: str, preferred: str = "unet") -> str:
    """The preferred model, or the first one that offers what a method needs."""
    return next(name for name in (preferred, *MODELS) if offers(name, method))


def images(batch: int = 2, seed: int = 0) -> Tensor:
    """[B, 3, 64, 96] in [0, 1]."""
    return torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def masks(batch: int = 2, seed: int = 0) -> Tensor:
    """[B, 64, 96] classes."""
    return torch.randint(NUM_CLASSES, (batch, *SIZE), generator=torch.Generator().manual_seed(seed))


def loss_of(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy with everything that a model reports while training."""
    output = model(x)
    loss = torch.nn.functional.cross_entropy(output.logits, y)
    for logits in output.auxiliary.values():
        loss = loss + 0.4 * torch.nn.functional.cross_entropy(logits, y)
    for penalty in output.penalties.values():
        loss = loss + 0.01 * penalty
    return loss


def train_steps(model: SegModel, applied: Applied, num_steps: int = 3) -> None:
    """A few optimiser steps in training mode."""
    optimizer = torch.optim.Adam(applied.parameters().values(), lr=1e-3)
    model.train()
    for step in range(num_steps):
        optimizer.zero_grad()
        loss_of(model, images(seed=step), masks(seed=step)).backward()
        optimizer.step()
    model.eval()


def logits(model: torch.nn.Module, x: Tensor | None = None) -> Tensor:
    """Output in eval mode, without gradient."""
    with torch.no_grad():
        out: Tensor = model(images() if x is None else x).logits
    return out


ALL_METHODS = [name for name in METHODS if not name.endswith(":") and METHODS.load(name).trains]
"""Every method but those that train nothing: what must move, have a gradient or be loaded back is empty
for them, and an optimiser takes no empty list. Their contracts are in test_zero_shot.py."""

REFUSED = {
    (
        "hf:eomt",
        "lst",
    ),  # its last blocks take queries along: sequences of two lengths, said in the first forward
    (
        "hf:upernet-swin",
        "interpolated-lora",
    ),  # (1 - a) = 1e-6 of a flat attention moves no float32
}
"""Pairs that cannot be told by the kinds of sites."""

CASES = [
    (model, method)
    for model in MODELS
    for method in ALL_METHODS
    if offers(model, method) and (model, method) not in REFUSED
]
"""Every method on every model that offers what it needs; the refusal of others has a test of its own."""

# members of a family: one for each way in which a tuner keeps its tensors
CASES += [
    (model, f"peft:{tuner}")
    for model in ("attention", "sam")
    for tuner in ("lora", "loha", "lokr", "ia3", "ln_tuning", "vera", "randlora", "delora", "hira", "glora")
]
CASES += [("unet-bilinear", "peft:loha"), ("unet-bilinear", "peft:lokr"), ("unet-bilinear", "peft:ia3")]
