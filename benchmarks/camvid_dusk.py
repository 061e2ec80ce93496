"""CamVid: a U-Net that was trained on the day clips is adapted to the dusk clip.

Usage: python benchmarks/camvid_dusk.py CAMVID_FOLDER WORK_FOLDER [--seeds 3]

Every number comes from `segtune fit`, `merge` and `evaluate` in processes of their own. Finished
runs in WORK_FOLDER are not repeated. Results go to benchmarks/camvid_dusk.json; the table in
docs/results.md is generated from it.

The dusk clip is 0001TP: 62 frames of the training split to adapt on (a few of them for validation),
62 frames of the test split to score on. The split is CamVid's own, which cuts one drive in two: the
frames of both halves are of the same street and evening.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from segtune.engine.files import write_json

RESULT = Path(__file__).with_suffix(".json")
CLASSES = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist"
DATA = {
    "data.classes": CLASSES,
    "data.ignore_index": 11,
    "data.resize": "120,160",
    "data.scale": "0.8,1.25",
}
UNET = {"model.depth": 4, "model.width": 16}
DAY = {"data.exclude": "0001TP*", "train.epochs": 20, "train.validate_every": 5, "train.batch_size": 8}
DUSK = {"data.include": "0001TP*", "train.epochs": 15, "train.validate_every": 5, "train.batch_size": 8}
DEEPLAB = {
    "data.include": "0001TP*",
    "data.limit": 16,
    "train.steps": 8,
    "train.batch_size": 4,
    "model.weights": "none",
}
CELLS: dict[str, dict[str, Any]] = {
    "head": {},
    "bitfit": {},
    "norm": {},
    "lora r=4 lr=1e-3": {"method.rank": 4, "optim.learning_rate": 1e-3},
    "lora r=16 lr=1e-3": {"method.rank": 16, "optim.learning_rate": 1e-3},
    "lora r=16 lr=5e-3": {"method.rank": 16, "optim.learning_rate": 5e-3},
    "full": {},
}


def segtune(*words: str) -> dict[str, Any]:
    """Runs a command of segtune with --json and returns what it prints."""
    print("segtune", *words, file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "segtune", *words, "--json"], stdout=subprocess.PIPE, check=True
    )
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def assignments(*settings: dict[str, Any]) -> list[str]:
    """Settings as words of a command line."""
    merged = {key: value for part in settings for key, value in part.items()}
    return [word for key, value in merged.items() for word in ("--set", f"{key}={value}")]


def fit(data: Path, out: Path, model: str, method: str, *settings: dict[str, Any]) -> dict[str, Any]:
    """One run; not repeated where its result lies there."""
    result = out / "result.json"
    if not result.is_file():
        words = ["--out", str(out), *assignments(DATA, *settings)]
        if (out / "config.yaml").is_file():
            words = ["--out", str(out), "--resume"]
            segtune("fit", *words)
        else:
            segtune("fit", str(data), "--model", model, "--method", method, *words)
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def row(result: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of a run."""
    kept = (
        "model", "method", "seed", "parameters_total", "parameters_trainable", "adapter_bytes",
        "train_seconds", "images_per_second", "wait_share", "peak_process_bytes", "estimated_step_bytes",
        "steps", "best_step", "precision", "device", "learning_rate", "crop",
    )  # fmt: skip
    return {
        **{key: result[key] for key in kept},
        "test": result["test"]["scores"],
        "test_iou_per_class": result["test"]["per_class"]["iou"],
        "val_miou": result["val"]["scores"]["miou"],
    }


def main() -> None:
    """Runs everything that has no result yet, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    data, work = arguments.data.resolve(), arguments.work

    day = fit(data, work / "day", "unet", "scratch", UNET, DAY)
    weights = work / "day.safetensors"
    if not weights.is_file():
        segtune("merge", str(work / "day"), "--out", str(weights))
    dusk_words = assignments({"data.include": "0001TP*", "data.exclude": "[]"})
    before = segtune("evaluate", str(work / "day"), "--split", "test", *dusk_words)
    rows: list[dict[str, Any]] = []
    report = {
        "what": "U-Net trained on CamVid's day clips, adapted to the dusk clip 0001TP",
        "settings": {
            "data": DATA,
            "unet": UNET,
            "day": DAY,
            "dusk": DUSK,
            "cells": CELLS,
            "deeplab": DEEPLAB,
        },
        "versions": day["versions"],
        "day": row(day),
        "before": {"test": before["scores"], "num_images": before["num_images"]},
        "rows": rows,
        "deeplab": [],
    }
    for seed in range(arguments.seeds):
        for name, settings in CELLS.items():
            method = name.split()[0]
            out = work / f"{name.replace(' ', '-').replace('=', '')}-{seed}"
            common = {"model.weights": weights, "train.seed": seed}
            result = fit(data, out, "unet", method, UNET, DUSK, common, settings)
            rows.append({"name": name, **row(result)})
            write_json(RESULT, report)
        out = work / f"scratch-{seed}"
        result = fit(data, out, "unet", "scratch", UNET, DUSK, {"train.seed": seed})
        rows.append({"name": "scratch", **row(result)})
        write_json(RESULT, report)
    for method in ("head", "lora", "full"):
        result = fit(data, work / f"deeplab-{method}", "deeplabv3_resnet50", method, DEEPLAB)
        report["deeplab"].append({"name": method, **row(result)})
        write_json(RESULT, report)


if __name__ == "__main__":
    main()
