"""What would lower the memory of a training step, or its work, and by how much; estimated as the step is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from segtune.config.run import RunConfig
from segtune.engine.cost import MemoryEstimate, cached_sections, estimate_memory
from segtune.errors import SegtuneError
from segtune.methods import METHODS

WORTH_SAYING = 0.05
"""Share of the estimate that a change must save."""
SHOWN = 0.01
"""Change of the work from which it is said."""
CACHE = "train.cache=prefix"
LITTLE = 0.15
"""Share of full tuning's memory below which an adapter is said to save little."""


@dataclass(frozen=True)
class Alternative:
    """A change of settings, with what a step takes after it."""

    change: str
    total: int
    """Bytes."""
    work: float
    """Operations for an image as a multiple of those before; with a cache, from the second epoch on."""


def alternatives(config: RunConfig, estimate: MemoryEstimate, num_classes: int) -> list[Alternative]:
    """Changes that save memory, and a cache where it saves work; the one that saves most memory first.

    Args:
        config: the run's settings.
        estimate: of a step with them.
        num_classes: K.
    """
    found = []
    before = estimate
    for change, options in _changes(config, estimate):
        changed = _estimate(config, estimate, num_classes, options)
        if changed is None:
            continue
        cached = change.endswith(CACHE)
        if cached and changed.operations > (1 - WORTH_SAYING) * before.operations:
            continue  # next to nothing is frozen
        if not cached:
            before = changed
        images = changed.batch_size * options.get("accumulate", config.train.accumulate)
        work = changed.operations / images / (estimate.operations / _images(config, estimate))
        saved = changed.total / estimate.total
        if min(saved, work if cached else 1) < 1 - WORTH_SAYING:
            found.append(Alternative(change, changed.total, work))
    return sorted(found, key=lambda alternative: alternative.total)


def _images(config: RunConfig, estimate: MemoryEstimate) -> int:
    """Of a step."""
    return estimate.batch_size * config.train.accumulate


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
    """One line for each alternative, and what to know about them."""
    lines = [
        f"{each.change:<48} {each.total / 2**30:6.2f} GiB  ({each.total / estimate.total - 1:+.0%})"
        + (f", work {each.work - 1:+.0%}" if abs(each.work - 1) >= SHOWN else "")
        for each in found
    ]
    if any(CACHE in each.change for each in found):
        lines.append(
            f"{CACHE}: the work from the second epoch on; without random crops, scales and colours, or"
            " with train.cache_views"
        )
    return lines


def _changes(config: RunConfig, estimate: MemoryEstimate) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes of settings, with those of `estimate_memory`; one with a cache follows the same without."""
    parts = config.method_parts
    placed = {
        name: settings
        for name, settings in parts.items()
        if getattr(settings, "last_blocks", 0) is None and getattr(settings, "first_blocks", 0) is None
    }
    caches = config.train.cache == "off" and config.train.strategy == "ddp"
    chosen: list[tuple[str, dict[str, Any]]] = [("", parts)]
    if placed:
        narrowed = {name: settings.model_copy(update={"last_blocks": 2}) for name, settings in placed.items()}
        chosen.append(("method.last_blocks=2", {**parts, **narrowed}))
    chosen += [
        (f"method={name}", {name: METHODS.settings(name)()})
        for name in ("head", "lst")
        if config.method != name
    ]
    for change, own in chosen:
        if change:
            yield change, {"parts": own}
        if caches:
            yield f"{change} {CACHE}".lstrip(), {"parts": own, "num_sections": None}
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
        "num_sections": cached_sections(config),
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
