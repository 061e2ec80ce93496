"""Images a second of `segtune predict`: files read and written one after the other, and beside the model.

Usage: python benchmarks/predict_overlap.py CAMVID_FOLDER WORK_FOLDER [--threads 1] [--repeats 3]

A small U-Net, trained for one step, predicts CamVid's test images at their own size, with overlays. Both
ways run in turn in one process; every repeat's seconds on the clock and of the processor are kept, and
the files of both are compared byte by byte. Results go to benchmarks/predict_overlap.json.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import segtune
from segtune.engine import predict
from segtune.engine.files import write_json
from segtune.engine.run import load_run, versions

RESULT = Path(__file__).with_suffix(".json")
NUM_IMAGES = 30
SETTINGS = {
    "model.depth": 3,
    "model.width": 16,
    "data.ignore_index": 11,
    "data.limit": 8,
    "train.steps": 1,
    "train.batch_size": 2,
}


def in_turn(function: Callable[[Any], Any], items: Iterable[Any], depth: int) -> Iterator[Any]:
    """What `ahead` does without a thread."""
    return map(function, items)


def main() -> None:
    """Measures both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = arguments.work / "run"
    if not (run / "result.json").is_file():
        segtune.fit(arguments.data, model="unet", method="scratch", out=run, settings=SETTINGS)
    loaded = load_run(run)
    images = sorted((arguments.data / "test" / "images").iterdir())[:NUM_IMAGES]
    rows: dict[str, dict[str, list[float]]] = {}
    contents: dict[str, list[bytes]] = {}
    for repeat in range(arguments.repeats + 1):
        for way in ("in turn", "beside"):
            out = arguments.work / "out"
            shutil.rmtree(out, ignore_errors=True)
            context = (
                patch.object(predict, "ahead", in_turn) if way == "in turn" else contextlib.nullcontext()
            )
            processor, clock = time.process_time(), time.perf_counter()
            with context:
                made = list(predict.predict_files(loaded, images, out))
            if repeat:  # the first one warms up
                row = rows.setdefault(way, {"clock": [], "processor": []})
                row["clock"].append(time.perf_counter() - clock)
                row["processor"].append(time.process_time() - processor)
            files = [file for p in made for file in (p.mask, p.overlay) if file is not None]
            contents[way] = [file.read_bytes() for file in files]
    assert contents["in turn"] == contents["beside"]
    for way, row in rows.items():
        print(way, f"{len(images) / min(row['clock']):.2f} images/s", row)
    write_json(
        RESULT,
        {
            "num_images": len(images),
            "settings": SETTINGS,
            "threads": arguments.threads,
            "same_files": True,
            "versions": versions(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
