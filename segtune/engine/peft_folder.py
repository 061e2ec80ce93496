"""What export to and import from the folders of the library peft share.

Such a folder holds `adapter_config.json` and `adapter_model.safetensors`. The library itself writes and
reads them here, so that names and patterns mean what they mean there. `segtune.json` beside them
says what the library has no place for: model, classes, palette, how images are fed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from segtune.engine.merge import differences_of
from segtune.errors import AdapterError, MissingExtraError

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
CARD = "segtune.json"
TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest logit, between the library's model and ours."""

UNUSUAL = "the library's branch beside a convolution leaves dilation, groups and padding modes out of account"


def library() -> Any:
    """The package peft.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise MissingExtraError("peft", extra="peft", purpose="the exchange with peft") from None
    return peft


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's warnings, which are about language models or said by us in other words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tuned_layers(model: nn.Module) -> dict[str, Any]:
    """The library's layers in a model by the name of the layer that each has replaced."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def saved_modules(model: nn.Module) -> dict[str, Any]:
    """The library's wrappers around modules that are saved as a whole, by the module's name."""
    from peft.utils import ModulesToSaveWrapper

    return {n: module for n, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}


def has_usual_form(layer: nn.Module) -> bool:
    """Whether the library's low-rank branch knows this form of layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    return isinstance(layer, nn.Linear)


def prove_equal(model: nn.Module, images: list[Tensor], expected: list[Tensor], what: str) -> list[float]:
    """The relative differences of logits for each image.

    Raises:
        AdapterError: one is larger than allowed.
    """
    found = differences_of(model, images, expected)
    if not max(found) <= TOLERANCE:
        raise AdapterError(
            f"{what} computes something else: relative difference {max(found):.3g}, allowed {TOLERANCE:.0e}",
            hint="nothing was written; this is a defect of segtune or of peft: please report it",
        )
    return found
