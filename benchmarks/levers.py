"""What makes a training step faster or smaller, one lever at a time and all together.

Usage: python benchmarks/levers.py [--threads 1] [--repeats 5] [--only sam unet]

Each way is the same network, method, batch and optimiser with some of the levers on; in every repeat
they follow each other, each in a process of its own. Levers that are always on in the program are
taken off by replacing the one function that decides on them. Seconds are those of the processor.
Results go to benchmarks/levers.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch
from peers import Case, Step, build, in_turn, ours, peak_and_seconds

from segtune.engine.files import write_json
from segtune.engine.half import halve_frozen
from segtune.engine.run import versions
from segtune.methods import branch, lora
from segtune.models import sam_attention
from segtune.types import SiteKind

RESULT = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Setting:
    """A case with the levers that matter for it."""

    case: Case
    method: str
    levers: tuple[str, ...]


CASES = {
    "sam": Setting(Case("sam-vit-base", {}, 512, 1), "conv-lora", ("in place", "chunks", "bf16", "half")),
    "unet": Setting(
        Case("unet", {"width": 32}, 256, 2, 8, SiteKind.CONV),
        "lora",
        ("in place", "forms", "channels last", "bf16"),
    ),
}
WORDS = {
    "in place": "branch in place of the output",
    "chunks": "attention in chunks",
    "bf16": "bf16",
    "half": "bf16, frozen weights rounded once",
    "forms": "form of each layer by rule",
    "channels last": "channels last",
}


def ways(setting: Setting) -> dict[str, tuple[str, ...]]:
    """Levers that are on, by name of the way."""
    alone = {WORDS[lever]: (lever,) for lever in setting.levers}
    if "half" in setting.levers:
        alone[WORDS["half"]] = ("bf16", "half")
    return {"none": (), **alone, "all": setting.levers, "full tuning, all": (*setting.levers, "full")}


@contextlib.contextmanager
def on(levers: tuple[str, ...]) -> Iterator[None]:
    """Takes off the levers that are not named."""
    with contextlib.ExitStack() as stack:
        if "in place" not in levers:
            stack.enter_context(patch.object(branch, "LARGE", math.inf))
        if "chunks" not in levers:
            stack.enter_context(patch.object(sam_attention, "worth_chunking", lambda query: False))
        yield


def make(setting: Setting, levers: tuple[str, ...]) -> Step:
    """The step of one way."""
    model = build(setting.case)
    # without the rule every layer has the branch, which is right for all of these
    context = contextlib.nullcontext() if "forms" in levers else patch.object(lora, "BRANCH_FAN_IN", 0)
    with context:
        applied = ours("full" if "full" in levers else setting.method, setting.case)(model)
    if "half" in levers:
        halve_frozen(applied, "bf16")
    step = Step(model, setting.case, "bf16" if "bf16" in levers else "32")
    if "channels last" not in levers:
        step.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        step.images = step.images.contiguous()
    return step


def measure(setting: Setting, levers: tuple[str, ...]) -> dict[str, Any]:
    """Peak memory of this process over a step, what it held before, and the seconds of another step."""
    before = psutil.Process().memory_info().rss
    step = make(setting, levers)
    with on(levers):
        return peak_and_seconds(step, before)


def main() -> None:
    """Measures every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    if RESULT.is_file():
        rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
        rows = [row for row in rows if row["case"] not in arguments.only]
    for name in arguments.only:
        setting = CASES[name]
        calls = {way: (setting, levers) for way, levers in ways(setting).items()}
        rows += in_turn(name, calls, measure, arguments.repeats)
    cases = {
        name: {
            "model": setting.case.model,
            "method": setting.method,
            "rank": setting.case.rank,
            "size": setting.case.size,
            "batch": setting.case.batch,
            **setting.case.settings,
        }
        for name, setting in CASES.items()
    }
    write_json(RESULT, {"threads": arguments.threads, "cases": cases, "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
