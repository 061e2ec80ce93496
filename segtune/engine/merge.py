"""Folding an adapter into its base: on a copy, with proof, into a file of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtune.engine.build import place
from segtune.engine.files import write_with
from segtune.engine.prompts import example_prompts
from segtune.engine.quantize import give_back_floats
from segtune.engine.run import LoadedRun, versions
from segtune.engine.tensors import write_tensors
from segtune.errors import MergeError, UsageError
from segtune.models import MODELS
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.models.weights import load_weights

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit, between merged and unmerged."""


def merge_run(run: LoadedRun, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Writes the base with the adapter folded in, as a checkpoint that `model.weights` takes.

    The merged model is compared with the unmerged one at two sizes before anything is written, and
    the written file is loaded into a fresh base and compared once more. Of a quantized base the file holds
    the floats that its weights stand for, as these are what the adapter was trained on.

    Args:
        run: a loaded run; it stays as it is.
        out: a .safetensors file.
        overwrite: replace the file if it exists.

    Returns:
        The file, its size, and the differences that were measured.

    Raises:
        UsageError: the file exists or has another suffix.
        MergeError: the method cannot be merged, or the outputs differ.
    """
    if out.suffix != ".safetensors":
        raise UsageError(
            f"a merged model is a .safetensors file, not {out.name!r}", hint="--out model.safetensors"
        )
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already", hint="give another name with --out")
    description = run.description
    unmerged = run.tunable.model.eval()
    images = probes(unmerged)
    expected = [logits_of(unmerged, image) for image in images]
    applied = copy.deepcopy(run.tunable.applied)
    give_back_floats(applied.model)
    applied.merge()
    assert isinstance(applied.model, SegModel)
    added = sorted(applied.model.state_dict().keys() - unmerged.state_dict().keys())
    if added:
        raise MergeError(
            f"merging {applied.method} gives {description.model} {len(added)} tensors that it does not have"
            f" ({', '.join(added[:3])}), so that no file could be loaded back",
            hint="use the run as it is; ssf with method.shift_without_bias=false merges into a file",
        )
    differences = {
        "merged": differences_of(applied.model, images, expected),
    }
    _prove(differences, "the merged model")
    metadata = {
        "format": "segtune-model-1",
        "model": description.model,
        "class_names": json.dumps(description.class_names),
        "method": json.dumps(description.method),
        "quantize": description.quantize,
    }
    merged = applied.model

    def write(path: Path) -> None:
        write_tensors(path, merged.state_dict(), metadata)
        fresh = build_model(
            description.model,
            len(description.class_names),
            MODELS.settings(description.model).model_validate(description.model_settings),
        )
        load_weights(fresh, str(path))
        fresh = place(fresh.eval(), next(unmerged.parameters()).device)
        differences["reloaded"] = differences_of(fresh, images, expected)
        _prove(differences, "the written file")

    write_with(out, write)
    return {
        "file": str(out),
        "bytes": out.stat().st_size,
        "sizes": [list(probe.shape[-2:]) for probe in images],
        "relative_differences": differences,
        "tolerance": TOLERANCE,
        "quantize": description.quantize,
        "versions": versions(),
    }


def probes(model: SegModel) -> list[Tensor]:
    """Random images [1, C, H, W] of two sizes, one of them odd, on the model's device."""
    spec = model.input_spec
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    base = max(64, 2 * spec.multiple, spec.minimum)
    sizes = [(base, base), (base + 32, 2 * base + 5)]
    return [
        torch.rand(1, spec.channels, *size, generator=generator).to(device, memory_format=torch.channels_last)
        for size in sizes
    ]


@torch.no_grad()
def logits_of(model: nn.Module, probe: Tensor) -> Tensor:
    """Logits [1, K, H, W] of an image, without gradient."""
    if isinstance(model, SegModel) and model.prompted:
        prompted: Tensor = model(probe, prompts=example_prompts(model, probe)).logits
        return prompted
    logits: Tensor = model(probe).logits
    return logits


def differences_of(model: nn.Module, images: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Largest difference of logits for each image, relative to the largest logit."""
    return [
        ((logits_of(model, probe) - want).abs().max() / want.abs().max().clamp_min(1e-12)).item()
        for probe, want in zip(images, expected, strict=True)
    ]


def _prove(differences: Mapping[str, list[float]], what: str) -> None:
    worst = max(value for values in differences.values() for value in values)
    if not worst <= TOLERANCE:
        raise MergeError(
            f"{what} does not agree with the unmerged one: relative difference {worst:.3g},"
            f" allowed {TOLERANCE:.0e}",
            hint="nothing was written; use the adapter unmerged",
        )
