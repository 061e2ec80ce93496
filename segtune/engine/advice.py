"""What would lower the memory of a training step, and by how much; estimated as the step is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from segtune.config.run import RunConfig
from segtune.engine.cost import MemoryEstimate, estimate_memory
from segtune.errors import SegtuneError
from segtune.methods import METHODS

WORTH_SAYING = 0.05
"""Share of the estimate that a change must save."""
LITTLE = 0.15
"""Share of full tuning's memory below which an adapter is said to save little."""


@dataclass(frozen=True)
class Alternative:
    """A change of settings, with the memory of a step after it."""

    change: str
    total: int


def alternatives(config: RunConfig, estimate: MemoryEstimate, num_classes: int) -> list[Alternative]:
    """Changes that save memory, the one that saves most first.

    Args:
        config: the run's settings.
        estimate: of a step with them.
        num_classes: K.
    """
    found = [
        Alternative(change, changed.total)
        for change, options in _changes(config, estimate)
        if (changed := _estimate(config, estimate, num_classes, options)) is not None
        and changed.total < (1 - WORTH_SAYING) * estimate.total
    ]
    return sorted(found, key=lambda alternative: alternative.total)


def compared_with_full(config: RunConfig, estimate: MemoryEstimate, num_classes: int) -> str | None:
    """One line where the method is an adapter that saves little against full tuning."""
    if config.method in ("full", "scratch"):
        return None
    full = _estimate(
        config, estimate, num_classes, {"parts": {"full": METHODS.settings("full")()}, "quantize": "none"}
    )
    if full is None or estimate.total < (1 - LITTLE) * full.total:
        return None
    return (
        f"method=full would need {full.total / 2**30:.2f} GiB: {config.method} trains fewer numbers, but"
        f" saves little memory ({1 - estimate.total / full.total:.0%}), as a gradient passes through the"
        " whole network"
    )


def describe(found: list[Alternative], estimate: MemoryEstimate) -> list[str]:
    """One line for each alternative."""
    return [
        f"{each.change:<48} {each.total / 2**30:6.2f} GiB  ({each.total / estimate.total - 1:+.0%})"
        for each in found
    ]


def _changes(config: RunConfig, estimate: MemoryEstimate) -> Iterator[tuple[str, dict[str, Any]]]:
    parts = config.method_parts
    placed = {
        name: settings
        for name, settings in parts.items()
        if getattr(settings, "last_blocks", 0) is None and getattr(settings, "first_blocks", 0) is None
    }
    if placed:
        narrowed = {name: settings.model_copy(update={"last_blocks": 2}) for name, settings in placed.items()}
        yield "method.last_blocks=2", {"parts": {**parts, **narrowed}}
    for name in ("head", "lst"):
        if config.method != name:
            yield f"method={name}", {"parts": {name: METHODS.settings(name)()}}
    if getattr(config.model_settings, "checkpointing", True) is False:
        settings = config.model_settings.model_copy(update={"checkpointing": True})
        yield "model.checkpointing=true (slower)", {"model_settings": settings}
    if estimate.precision == "32":
        yield "train.precision=bf16", {"precision": "bf16"}
    if config.model_common.quantize == "none":
        for kind in ("int8", "nf4"):
            yield f"model.quantize={kind}", {"quantize": kind}
    if estimate.batch_size > 1:
        smaller = estimate.batch_size // 2
        times = config.train.accumulate * 2
        yield (
            f"train.batch_size={smaller} train.accumulate={times}",
            {"batch_size": smaller, "accumulate": times},
        )
    if config.data.crop is None or isinstance(config.data.crop, str):
        height, width = (max(32, side // 2) for side in estimate.size)
        yield f"data.crop={height},{width}", {"size": (height, width)}


def _estimate(
    config: RunConfig, estimate: MemoryEstimate, num_classes: int, options: dict[str, Any]
) -> MemoryEstimate | None:
    """The estimate after a change; None where the method does not fit the model."""
    settings: dict[str, Any] = {
        "model_settings": config.model_settings,
        "parts": config.method_parts,
        "batch_size": estimate.batch_size,
        "size": estimate.size,
        "precision": estimate.precision,
        "quantize": config.model_common.quantize,
        "accumulate": config.train.accumulate,
        **options,
    }
    try:
        return estimate_memory(
            model=config.model,
            num_classes=num_classes,
            optimizer=config.optim.name,
            on_gpu=estimate.allocator == 0,
            **settings,
        )
    except SegtuneError:
        return None
