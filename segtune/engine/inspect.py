"""What a method does to a model and what a step will need, from a build without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segtune.config.run import RunConfig
from segtune.data.base import DataIndex
from segtune.data.files import SUFFIXES, image_size
from segtune.data.open import open_data
from segtune.engine.batch import MOST, choose_batch_size
from segtune.engine.build import choose_device, choose_precision
from segtune.engine.cost import (
    MemoryEstimate,
    apply_parts,
    cached_sections,
    estimate_memory,
    file_bytes,
    program_bytes,
    trainable_table,
    training_size,
)
from segtune.errors import UsageError
from segtune.models.build import build_model
from segtune.settings import Settings

DEFAULT_CROP = (512, 512)


def inspect(
    *,
    model: str,
    model_settings: Settings | None,
    num_classes: int,
    parts: Mapping[str, Settings],
) -> dict[str, Any]:
    """Sites and counts of a method on a model, from a build without weights.

    Returns:
        parameters_total, parameters_trainable, parameters_by_role, adapter_bytes, sites (name, kind,
        part, block, used), mergeable, not_mergeable_because.
    """
    built = build_model(model, num_classes, model_settings, meta=True)
    applied = apply_parts(built, parts)
    counts = applied.counts()
    used = set(applied.sites)
    refusals = applied.merge_refusals()
    return {
        "model": model,
        "method": applied.method,
        "num_classes": num_classes,
        "parameters_total": counts["total"],
        "parameters_trainable": counts["trainable"],
        "parameters_by_role": {k: v for k, v in counts.items() if k not in {"total", "trainable"}},
        "adapter_bytes": file_bytes(applied.state_dict()),
        "mergeable": not refusals,
        "not_mergeable_because": refusals,
        "table": trainable_table(applied),
        "sites": [
            {
                "name": site.name,
                "kind": str(site.kind),
                "part": str(site.part),
                "block": site.block,
                "used": site in used,
            }
            for site in applied.host.sites
        ],
    }


def inspect_config(
    config: RunConfig, *, num_classes: int | None, data: Path | None
) -> tuple[dict[str, Any], MemoryEstimate]:
    """`inspect` and the memory estimate for a run's settings.

    Args:
        config: the settings.
        num_classes: K; None: as many as the data has.
        data: where image sizes come from; None: crops of 512 x 512.

    Returns:
        The report, with "batch_size_auto" (what a run would say of its choice; None where the settings
        name a number), and the estimate of a step; of one image where not even one fits.
    """
    index = open_data(data, config.data) if data is not None else None
    if num_classes is None:
        assert index is not None
        num_classes = index.classes.num_classes
    report = inspect(
        model=config.model,
        model_settings=config.model_settings,
        num_classes=num_classes,
        parts=config.method_parts,
    )
    device = choose_device(config.train.accelerator)
    sizes = _sizes(config, index)
    batch_size, note = config.train.batch_size, None
    if batch_size == "auto":
        num_training = MOST if index is None else len(index.training)
        try:
            choice = choose_batch_size(
                config, num_classes=num_classes, num_training=num_training, sizes=sizes
            )
            batch_size, note = choice.batch_size, choice.note
        except UsageError as error:
            batch_size, note = 1, str(error)
    estimate = estimate_memory(
        model=config.model,
        model_settings=config.model_settings,
        num_classes=num_classes,
        parts=config.method_parts,
        batch_size=batch_size,
        size=training_size(config, sizes),
        precision=choose_precision(config.train.precision, device),
        quantize=config.model_common.quantize,
        optimizer=config.optim.name,
        accumulate=config.train.accumulate,
        num_sections=cached_sections(config),
        on_gpu=device.type != "cpu",
    )
    return {**report, "batch_size_auto": note}, replace(estimate, program=program_bytes(device))


def _sizes(config: RunConfig, index: DataIndex | None) -> set[tuple[int, int]]:
    """Sizes of the images, as far as they matter."""
    if index is not None and config.data.resize is None:
        return set(_image_sizes(index))
    return {config.data.resize or DEFAULT_CROP}


def _image_sizes(index: DataIndex) -> Iterator[tuple[int, int]]:
    """Height, width in pixels of every image; the slices of a volume have one size."""
    for sample in {sample.case: sample for sample in index.samples}.values():
        if sample.slice is None and sample.image.suffix.lower() in SUFFIXES:
            yield image_size(sample.image)
        else:
            height, width = index.reader.image(sample).shape[:2]
            yield height, width
