"""What a run will cost, said before it starts: parameters by module, bytes on disk, peak memory.

Memory is estimated by running one training step on tensors without data (engine/memory.py), in the run's own
precision and with its own loss.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import psutil
import torch
from torch import nn

from segtune.config.run import RunConfig
from segtune.data.transforms import resolve_crop
from segtune.engine.half import halve_frozen
from segtune.engine.memory import run_step, without_data
from segtune.engine.prefix import find_prefix
from segtune.engine.quantize import Kind, quantize_frozen
from segtune.methods.apply import Applied, apply
from segtune.methods.attach import num_numbers
from segtune.methods.base import MethodSettings
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.settings import Settings

KERNELS = 24 * 2**20
"""Bytes of code that a process loads, and compiles, in its first step (measured: 20 MiB for SAM, 25 for
SegFormer)."""
MOST_HELD = 1.5
"""Multiple of living tensors beyond which the model of the heap is not believed: it keeps gaps for ever, and
so grows with every turn of a loop (measured: 1.1 to 1.5; 1.7 where few tensors live, `head` on SAM)."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a training step needs at its peak."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Everything else that a step makes: what the backward pass needs, and what lives in between."""
    allocator: int = 0
    """On a processor: what the C library holds for a step beyond living tensors (engine/heap.py)."""
    program: int = 0
    """On a processor: the program itself with its libraries, without the model; not part of the total."""
    batch_size: int
    size: tuple[int, int]
    precision: str
    operations: int
    """Additions and multiplications of a step's products, convolutions and attention, both ways; no bytes."""

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


def program_bytes(device: torch.device, model: nn.Module | None = None) -> int:
    """Memory of this process as it is now, but for a model, and of what a first step will load.

    To be asked when the libraries of the model are loaded. 0 for a GPU, whose memory that does not take.
    """
    if device.type != "cpu":
        return 0
    now = int(psutil.Process().memory_info().rss)
    return now + KERNELS - (0 if model is None else weight_bytes(model))


def weight_bytes(model: nn.Module) -> int:
    """What parameters and buffers take."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


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
    num_sections: int | None = 0,
    on_gpu: bool = False,
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
        num_sections: sections of the encoder that are read from a cache; None: all that never change.
        on_gpu: leave out what only a processor needs.
    """
    built = build_model(model, num_classes, model_settings, meta=True)
    with without_data(built):
        applied = apply_parts(built, parts)
        if num_sections is None:
            num_sections = find_prefix(built, applied, size, precision).num_sections
        if quantize != "none":
            quantize_frozen(applied, quantize)
        halve_frozen(applied, precision)
        built.train()
        step = run_step(
            built,
            applied,
            batch_size=batch_size,
            size=size,
            precision=precision,
            loss=loss,
            accumulate=accumulate > 1,
            num_sections=num_sections,
        )
        weights = weight_bytes(built)
        gradients = sum(p.numel() * p.element_size() for p in applied.parameters().values())
    return MemoryEstimate(
        weights=weights,
        gradients=gradients,
        optimizer=(1 if optimizer == "sgd" else 2) * gradients,
        activations=max(0, step.peak - gradients),
        allocator=0 if on_gpu else max(0, min(step.heap, round(MOST_HELD * step.peak)) - step.peak),
        batch_size=batch_size,
        size=size,
        precision=precision,
        operations=accumulate * step.operations,
    )


def apply_parts(model: SegModel, parts: Mapping[str, Settings]) -> Applied:
    """The methods on a model that is only looked at, as on one that is trained."""
    methods = cast(Mapping[str, MethodSettings], parts)
    applied = apply(model, model.sites(), methods, removable=False, unused=model.unused)
    model.penalty_layers = list(applied.operations)
    return applied


def cached_sections(config: RunConfig) -> int | None:
    """`estimate_memory`'s `num_sections` by the settings alone."""
    return None if config.train.cache == "prefix" else 0


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
