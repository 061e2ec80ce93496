"""What a run will cost, said before it starts: parameters by module, bytes on disk, peak memory.

Memory is estimated by running one training step on tensors without data (engine/memory.py), in the run's own
precision and with its own loss.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import psutil
import torch
from torch import nn

from segtune.config.run import RunConfig
from segtune.data.base import DataIndex
from segtune.data.files import SUFFIXES, image_size
from segtune.data.open import open_data
from segtune.data.transforms import resolve_crop
from segtune.engine.build import choose_device, choose_precision
from segtune.engine.half import halve_frozen
from segtune.engine.memory import step_peak, without_data
from segtune.engine.quantize import Kind, quantize_frozen
from segtune.methods.apply import Applied, apply
from segtune.methods.attach import num_numbers
from segtune.methods.base import MethodSettings
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.settings import Settings

DEFAULT_CROP = (512, 512)
ALLOCATOR_SHARE = 0.15
"""Of what a step makes, on a processor: the next tensor does not always fit into the freed blocks that the C
library keeps (measured: docs/memory.md)."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a training step needs at its peak."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Everything else that a step makes: what the backward pass needs, and what lives in between."""
    allocator: int = 0
    """On a processor: what the allocator holds beside living tensors."""
    program: int = 0
    """On a processor: the program itself, before it builds a model; not part of the total."""
    batch_size: int
    size: tuple[int, int]
    precision: str

    @property
    def total(self) -> int:
        """Sum of all parts but the program."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.allocator

    @property
    def process(self) -> int:
        """What the process needs on a processor."""
        return self.total + self.program

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the total included."""
        return {**self.__dict__, "total": self.total}


def program_bytes(device: torch.device) -> int:
    """Memory of this process as it is now; 0 for a GPU, whose memory it does not take."""
    return psutil.Process().memory_info().rss if device.type == "cpu" else 0


def estimate_memory(
    *,
    model: str,
    model_settings: Settings | None,
    num_classes: int,
    parts: Mapping[str, Settings],
    batch_size: int,
    size: tuple[int, int],
    precision: str,
    quantize: Kind | Literal["none"] = "none",
    optimizer: str = "adamw",
    accumulate: int = 1,
    loss: nn.Module | None = None,
    num_sections: int = 0,
    on_gpu: bool = False,
    program: int = 0,
) -> MemoryEstimate:
    """Counts what one training step keeps in memory; no weights are loaded, nothing is computed.

    Args:
        model: registered name.
        model_settings: None for the defaults.
        num_classes: K.
        parts: settings of each method by name.
        batch_size: images in a batch.
        size: height and width of the training images in pixels.
        precision: "32", "bf16" or "16".
        quantize: "none", "int8" or "nf4": frozen linear layers' weights.
        optimizer: "adam" and "adamw" keep two numbers for each parameter, "sgd" one.
        accumulate: batches summed up for one step.
        loss: of the run; None: cross entropy.
        num_sections: sections of the encoder that are read from a cache.
        on_gpu: leave out what only a processor needs.
        program: see `program_bytes`.
    """
    built = build_model(model, num_classes, model_settings, meta=True)
    with without_data(built):
        applied = _apply(built, parts)
        if quantize != "none":
            quantize_frozen(applied, quantize)
        halve_frozen(applied, precision)
        built.train()
        peak = step_peak(
            built,
            applied,
            batch_size=batch_size,
            size=size,
            precision=precision,
            loss=loss,
            accumulate=accumulate > 1,
            num_sections=num_sections,
        )
        weights = sum(t.numel() * t.element_size() for t in (*built.parameters(), *built.buffers()))
        gradients = sum(p.numel() * p.element_size() for p in applied.parameters().values())
    return MemoryEstimate(
        weights=weights,
        gradients=gradients,
        optimizer=(1 if optimizer == "sgd" else 2) * gradients,
        activations=max(0, peak - gradients),
        allocator=0 if on_gpu else round(ALLOCATOR_SHARE * max(peak, gradients)),
        program=program,
        batch_size=batch_size,
        size=size,
        precision=precision,
    )


def _apply(model: SegModel, parts: Mapping[str, Settings]) -> Applied:
    methods = cast(Mapping[str, MethodSettings], parts)
    applied = apply(model, model.sites(), methods, removable=False, unused=model.unused)
    model.penalty_layers = list(applied.operations)
    return applied


def file_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Size of the safetensors file that holds tensors, known without their data.

    Args:
        tensors: by name, on any device. What the file says about itself beside them is left out.
    """
    header = {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + (length + 7) // 8 * 8 + offset


def trainable_table(applied: Applied, depth: int = 2) -> list[tuple[str, int, int]]:
    """Parameters by module: name, all, trained; modules are cut off below `depth` levels."""
    trained = {id(parameter) for parameter in applied.parameters().values()}
    rows: dict[str, list[int]] = {}
    for name, parameter in applied.model.named_parameters():
        module = ".".join(name.split(".")[:-1][:depth]) or name
        row = rows.setdefault(module, [0, 0])
        row[0] += num_numbers(parameter)
        row[1] += parameter.numel() if id(parameter) in trained else 0
    return [(name, total, part) for name, (total, part) in rows.items()]


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
    applied = _apply(built, parts)
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
    estimate = estimate_memory(
        model=config.model,
        model_settings=config.model_settings,
        num_classes=num_classes,
        parts=config.method_parts,
        batch_size=8 if config.train.batch_size == "auto" else config.train.batch_size,
        size=_crop_size(config, index),
        precision=choose_precision(config.train.precision, device),
        quantize=config.model_common.quantize,
        optimizer=config.optim.name,
        accumulate=config.train.accumulate,
        on_gpu=device.type != "cpu",
        program=program_bytes(device),
    )
    return report, estimate


def _crop_size(config: RunConfig, index: DataIndex | None) -> tuple[int, int]:
    if isinstance(config.data.crop, tuple) or index is not None:
        sizes = [] if index is None or config.data.resize is not None else list(_image_sizes(index))
        return training_size(config, sizes)
    return config.data.resize or DEFAULT_CROP


def training_size(config: RunConfig, sizes: Collection[tuple[int, int]]) -> tuple[int, int]:
    """Height and width in pixels of training samples.

    Args:
        config: the settings.
        sizes: of the images; not needed where the settings name a size.
    """
    crop, resize = config.data.crop, config.data.resize
    if isinstance(crop, tuple):
        return crop
    sizes = sizes if resize is None else [resize]
    if crop == "auto":
        multiple = build_model(config.model, 2, config.model_settings, meta=True).input_spec.multiple
        return resolve_crop(sizes, multiple)
    return max(sizes, key=lambda size: size[0] * size[1])


def _image_sizes(index: DataIndex) -> Iterator[tuple[int, int]]:
    """Height, width in pixels of every image; the slices of a volume have one size."""
    for sample in {sample.case: sample for sample in index.samples}.values():
        if sample.slice is None and sample.image.suffix.lower() in SUFFIXES:
            yield image_size(sample.image)
        else:
            height, width = index.reader.image(sample).shape[:2]
            yield height, width
