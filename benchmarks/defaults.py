"""A training step of SAM ViT-B as segtune runs it by default, and as AutoGluon runs it.

Usage: python benchmarks/defaults.py --autogluon FOLDER [--threads 1] [--repeats 3] [--only sam-512]

Unlike in benchmarks/peers.py, where only the layers differ, each side has the precision and the attention
that its users get on a processor: segtune bf16 autocast with frozen weights rounded once and attention in
chunks; AutoGluon float32, to which `infer_precision` of its `utils/precision.py` falls back without a
GPU, and its layers in the network of transformers. Weights, images, masks, optimiser and rank are the
same. In every repeat the ways follow each other, each in a process of its own, behind a step that warms up;
seconds are those of the processor. Results go to benchmarks/defaults.json; cases that are not run again stay.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch
from peers import CASES, Case, Step, adapt, build, in_turn, missing, ours, peak_and_seconds, stated_versions

from segtune.engine.files import write_json
from segtune.engine.half import halve_frozen
from segtune.models import sam_attention

RESULT = Path(__file__).with_suffix(".json")
NAMES = ("sam-512", "sam-1024")
WAYS = ("lora", "autogluon lora", "conv-lora", "autogluon conv-lora")


def measure(case: Case, way: str, folder: Path) -> dict[str, Any]:
    """Peak memory of this process over a step, what it held before, and the seconds of another step."""
    before = psutil.Process().memory_info().rss
    torch.manual_seed(0)
    model = build(case)
    theirs = way.startswith("autogluon ")
    if theirs:
        adapt(way, model, case, folder)
    else:
        halve_frozen(ours(way, case)(model), "bf16")
    step = Step(model, case, "32" if theirs else "bf16")
    with patch.object(sam_attention, "worth_chunking", lambda query: False) if theirs else nullcontext():
        return peak_and_seconds(step, before)


def main() -> None:
    """Measures the cases asked for and puts them into the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--autogluon", type=Path, required=True)
    arguments = parser.parse_args()
    if "autogluon" in missing(arguments.autogluon):
        parser.error(f"there is no AutoGluon in {arguments.autogluon}")
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    if RESULT.is_file():
        rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
        rows = [row for row in rows if row["case"] not in arguments.only]
    for name in arguments.only:
        case = CASES[name]
        calls = {way: (case, way, arguments.autogluon) for way in WAYS}
        rows += in_turn(name, calls, measure, arguments.repeats)
    cases = {
        name: {"model": CASES[name].model, "size": CASES[name].size, "batch": 1, "rank": CASES[name].rank}
        for name in NAMES
    }
    result = {"threads": arguments.threads, "cases": cases, "versions": stated_versions(arguments.autogluon)}
    write_json(RESULT, {**result, "rows": rows})


if __name__ == "__main__":
    main()
