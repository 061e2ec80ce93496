"""One training step of the demo's U-Net with channels first and channels last, in both precisions.

Usage: python benchmarks/memory_layout.py [--threads 2] [--repeats 7]

The four ways of a method are timed one after the other in every repeat; medians are kept. Results go
to benchmarks/memory_layout.json; docs/decisions/0008-memory-layout.md follows from them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from segtune.engine.files import write_json
from segtune.engine.run import versions
from segtune.methods import METHODS
from segtune.methods.apply import apply
from segtune.models import MODELS
from segtune.models.build import build_model

RESULT = Path(__file__).with_suffix(".json")
SHAPE = (8, 3, 128, 192)
WAYS = [(precision, last) for precision in ("32", "bf16") for last in (False, True)]


def step_seconds(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str) -> float:
    """Seconds of one forward and backward."""
    begin = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits = model(x).logits
    torch.nn.functional.cross_entropy(logits.float(), y).backward()
    return time.perf_counter() - begin


def main() -> None:
    """Measures full, lora and head."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    x, y = torch.rand(SHAPE), torch.randint(8, (SHAPE[0], *SHAPE[2:]))
    for method in ("full", "lora", "head"):
        models = {}
        for precision, last in WAYS:
            layout = torch.channels_last if last else torch.contiguous_format
            model = build_model("unet", 8, MODELS.settings("unet")(depth=3, width=16))
            apply(model, model.sites(), {method: METHODS.settings(method)()}, removable=False)
            models[precision, last] = model.train().to(memory_format=layout), x.to(memory_format=layout)
        times: dict[tuple[str, bool], list[float]] = {way: [] for way in WAYS}
        for repeat in range(arguments.repeats + 1):
            for way, (model, images) in models.items():
                seconds = step_seconds(model, images, y, way[0])
                if repeat:  # the first one prepares kernels
                    times[way].append(seconds)
        for precision in ("32", "bf16"):
            first, last = (statistics.median(times[precision, flag]) for flag in (False, True))
            rows.append({"method": method, "precision": precision, "first": first, "last": last})
            print(rows[-1], flush=True)
    write_json(RESULT, {"shape": SHAPE, "threads": arguments.threads, "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
