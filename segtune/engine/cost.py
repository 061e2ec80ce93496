"""What a run will cost, said before it starts: parameters by module, bytes on disk, peak memory.

Memory is estimated by running one training step on tensors without data: every tensor that autograd
keeps for the backward pass is counted, under the run's own precision.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from segtune.config.run import RunConfig
from segtune.data.base import DataIndex
from segtune.data.files import SUFFIXES, image_size
from segtune.data.open import open_data
from segtune.data.transforms import resolve_crop
from segtune.engine.build import choose_device, choose_precision
from segtune.engine.half import halve_frozen
from segtune.engine.prompts import example_prompts
from segtune.methods.apply import Applied, apply
from segtune.methods.base import MethodSettings
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.settings import Settings

DEFAULT_CROP = (512, 512)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a training step needs at its peak, without the program itself."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    batch_size: int
    size: tuple[int, int]
    precision: str

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the total included."""
        return {**self.__dict__, "total": self.total}


def estimate_memory(
    *,
    model: str,
    model_settings: Settings | None,
    num_classes: int,
    parts: Mapping[str, Settings],
    batch_size: int,
    size: tuple[int, int],
    precision: str,
    optimizer: str = "adamw",
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
        optimizer: "adam" and "adamw" keep two numbers for each parameter, "sgd" one.
    """
    built = build_model(model, num_classes, model_settings, meta=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        built.to_empty(device="cpu")
        applied = _apply(built, parts)
        halve_frozen(applied, precision)
        built.train()
        images = torch.empty(batch_size, built.input_spec.channels, *size)
        own = {id(t) for t in (*built.parameters(), *built.buffers())}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in own:
                storage = tensor.untyped_storage()
                kept[storage._cdata] = storage.nbytes()
                holders.append(tensor)  # a freed storage's address would be counted for another one
            return tensor

        holders: list[torch.Tensor] = []
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "32"),
        ):
            output = built(images, prompts=example_prompts(built, images))
            loss = output.logits.float().log_softmax(dim=1).sum()
            for logits in output.auxiliary.values():
                loss = loss + logits.float().log_softmax(dim=1).sum()
        # the loss's own gradient lives beside everything that is kept
        activations = sum(kept.values()) + output.logits.numel() * 4
        weights = sum(t.numel() * t.element_size() for t in (*built.parameters(), *built.buffers()))
        gradients = sum(p.numel() * p.element_size() for p in applied.parameters().values())
    states = 1 if optimizer == "sgd" else 2
    return MemoryEstimate(
        weights=weights,
        gradients=gradients,
        optimizer=states * gradients,
        activations=activations,
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
        row[0] += parameter.numel()
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


def memory_advice(method: str, estimate: MemoryEstimate) -> list[str]:
    """What would lower the estimate, in order of effect, honestly."""
    lines = []
    if estimate.activations > estimate.weights + estimate.gradients + estimate.optimizer:
        share = estimate.activations / max(1, estimate.total)
        lines.append(f"activations are {share:.0%} of it: a smaller data.crop or train.batch_size helps most")
        if "lora" in method or "bitfit" in method or "norm" in method:
            lines.append(
                f"{method} does not lower them; method=head and method=lst do, as no gradient passes through"
                " the encoder"
            )
    return lines


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
    estimate = estimate_memory(
        model=config.model,
        model_settings=config.model_settings,
        num_classes=num_classes,
        parts=config.method_parts,
        batch_size=config.train.batch_size,
        size=_training_size(config, index),
        precision=choose_precision(config.train.precision, choose_device(config.train.accelerator)),
        optimizer=config.optim.name,
    )
    return report, estimate


def _training_size(config: RunConfig, index: DataIndex | None) -> tuple[int, int]:
    crop = config.data.crop
    if isinstance(crop, tuple):
        return crop
    if index is None:
        return config.data.resize or DEFAULT_CROP
    resize = config.data.resize
    sizes = list(_image_sizes(index)) if resize is None else [resize]
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
