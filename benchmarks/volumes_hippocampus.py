"""Hippocampus volumes (Medical Segmentation Decathlon): a small U-Net on axial slices, scored per volume.

Usage: python benchmarks/volumes_hippocampus.py HIPPOCAMPUS_FOLDER WORK_FOLDER

Every number comes from `segtune fit` and `segtune evaluate` in processes of their own; a finished run in
WORK_FOLDER is not repeated. Whole volumes are held out (the data does not say which are of one person).
Results go to benchmarks/volumes_hippocampus.json. `processor_seconds_of_fit` is the time to compare with:
`train_seconds` also counts what other programs on the machine took.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from segtune.engine.files import write_json

RESULT = Path(__file__).with_suffix(".json")
SETTINGS: dict[str, Any] = {
    "data.classes": "background,anterior,posterior",
    "data.volume.crop": "64,48",
    "data.crop": "null",
    "model.depth": 3,
    "model.width": 12,
    "loss.name": "dice_cross_entropy",
    "optim.learning_rate": 3e-3,
    "train.epochs": 8,
    "train.batch_size": 32,
    "train.validate_every": 2,
    "train.monitor": "volume_dice",
    "train.threads": 1,
    "train.accelerator": "cpu",
}


def segtune(*words: str) -> dict[str, Any]:
    """Runs a command of segtune with --json and returns what it prints."""
    print("segtune", *words, file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "segtune", *words, "--json"], stdout=subprocess.PIPE, check=True
    )
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def main() -> None:
    """Trains where no finished run is there, evaluates, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    run = arguments.work / "hippocampus"
    options = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    trained = None
    if not (run / "result.json").is_file():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = ["--model", "unet", "--method", "scratch", "--out", str(run)]
        segtune("fit", str(arguments.data.resolve()), *words, *options)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        trained = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    test = segtune("evaluate", str(run), "--split", "test", "--batch-size", "32")
    kept = (
        "model", "method", "seed", "num_classes", "class_names", "splits", "parameters_total", "steps",
        "best_step", "train_seconds", "wait_share", "peak_process_bytes", "precision", "device", "versions",
    )  # fmt: skip
    report = {
        "what": "U-Net on axial slices of hippocampus volumes, scored per volume in millimetres",
        "settings": SETTINGS,
        **{key: result[key] for key in kept},
        "processor_seconds_of_fit": trained,
        "test": {key: test[key] for key in ("num_images", "scores", "per_class", "volumes")},
    }
    write_json(RESULT, report)


if __name__ == "__main__":
    main()
