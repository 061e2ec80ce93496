"""Time of inference of a finished run, with the adapter beside its base and folded into it."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtune.engine.infer import Inference, InferenceSettings
from segtune.engine.prompts import example_prompts
from segtune.engine.quantize import give_back_floats
from segtune.engine.run import LoadedRun, load_run

ROUNDS = 5
"""Times that either form is measured; they take turns, so that a busy machine hits both."""


def measure_speed(run: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Milliseconds for one image, decoded already, from pixels to probabilities at its own size.

    Args:
        run: a run's folder.
        size: height and width of the image in pixels; its content is noise, on which no time depends.

    Returns:
        "unmerged_ms" and "merged_ms", each the median of several; "merged_ms" is None where the method
        cannot be merged, and "merge_refusal" says why.
    """
    loaded = load_run(run)
    forms = {"unmerged_ms": loaded}
    refusals = loaded.tunable.applied.merge_refusals()
    if not refusals:
        merged = load_run(run)
        give_back_floats(merged.tunable.model)
        merged.tunable.applied.merge()
        forms["merged_ms"] = merged
    channels = loaded.tunable.model.input_spec.channels
    image = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(ROUNDS + 1):
        for name, form in forms.items():
            seconds = _seconds(form, image)
            if round_:  # the first one warms up
                times[name].append(1000 * seconds)
    return {
        "unmerged_ms": statistics.median(times["unmerged_ms"]),
        "merged_ms": statistics.median(times["merged_ms"]) if not refusals else None,
        "merge_refusal": refusals[0] if refusals else None,
        "size": size,
        "rounds": ROUNDS,
    }


def _seconds(loaded: LoadedRun, image: Tensor) -> float:
    settings = InferenceSettings.from_dict(dict(loaded.description.inference))
    inference = Inference(loaded.tunable.model, settings)
    prompts = example_prompts(loaded.tunable.model, image)
    begin = time.perf_counter()
    inference.probabilities(image, prompts).cpu()
    return time.perf_counter() - begin
