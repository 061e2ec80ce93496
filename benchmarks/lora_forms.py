"""LoRA on convolutions: the branch against the weight form, forward and backward, as ratios in one run.

Usage: python benchmarks/lora_forms.py [--threads 2] [--repeats 15]

Each case times the frozen layer, the branch and the weight form one after the other in every repeat,
so that noise of the machine falls on all of them; the median of each is kept. Results go to
benchmarks/lora_forms.json. `segtune.methods.lora.choose_form` states the rule that follows.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segtune.engine.files import write_json
from segtune.engine.run import versions
from segtune.methods.attach import attach
from segtune.methods.lora import LoraOperation, choose_form
from segtune.types import Access

RESULT = Path(__file__).with_suffix(".json")
RANK = 8
CASES = [  # channels in, channels out, kernel, side of the square image, batch
    (16, 16, 3, 256, 2),
    (32, 32, 3, 256, 2),
    (64, 64, 3, 128, 2),
    (64, 64, 3, 256, 2),
    (128, 128, 3, 64, 2),
    (128, 128, 3, 128, 2),
    (256, 256, 3, 32, 2),
    (256, 256, 3, 64, 2),
    (512, 512, 3, 32, 2),
    (64, 256, 1, 128, 2),
    (256, 64, 1, 128, 2),
    (1024, 256, 1, 32, 2),
]


def step_seconds(layer: nn.Module, x: torch.Tensor, dtype: torch.dtype | None) -> float:
    """Seconds of one forward and backward."""
    begin = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
        y = layer(x)
    y.float().square().mean().backward()
    return time.perf_counter() - begin


def measure(case: tuple[int, ...], precision: str, repeats: int) -> dict[str, Any]:
    """Medians of the three layers for one case."""
    inputs, outputs, kernel, side, batch = case
    dtype = torch.bfloat16 if precision == "bf16" else None
    base = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    base.requires_grad_(False)
    layers: dict[str, nn.Module] = {"frozen": base}
    for form in ("branch", "weight"):
        layer = copy.deepcopy(base)
        attach(layer, "lora", LoraOperation(layer, rank=RANK, scale=1.0, dropout=0.0, form=form))  # type: ignore[arg-type]
        layers[form] = layer
    x = torch.rand(batch, inputs, side, side).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    for layer in layers.values():
        layer.to(memory_format=torch.channels_last)
        step_seconds(layer, x, dtype)
    times: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(repeats):
        for name, layer in layers.items():
            times[name].append(step_seconds(layer, x, dtype))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "inputs": inputs,
        "outputs": outputs,
        "kernel": kernel,
        "side": side,
        "batch": batch,
        "precision": precision,
        "milliseconds_frozen": medians["frozen"] * 1000,
        "branch_ratio": medians["branch"] / medians["frozen"],
        "weight_ratio": medians["weight"] / medians["frozen"],
        "faster": min(("branch", "weight"), key=lambda name: medians[name]),
        "chosen": choose_form(base, Access.CALL),
    }


def main() -> None:
    """Measures every case in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for precision in ("32", "bf16"):
        for case in CASES:
            rows.append(measure(case, precision, arguments.repeats))
            print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    write_json(RESULT, {"rank": RANK, "threads": arguments.threads, "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
