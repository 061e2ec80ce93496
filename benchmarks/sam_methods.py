"""Every tuning method on a small SAM: trained on CamVid's day clips, tuned for polyps and for roads.

Usage: python benchmarks/sam_methods.py SHARED_DATA WORK_FOLDER [--seeds 3] [--only METHOD ...]

The network has SAM's shape (windowed and global blocks, relative positions, mask decoder) at a size
that a processor trains in minutes. It is first trained on CamVid's day clips, so that it knows
something, and then tuned by each method for the same number of steps:

    polyps  CVC-ClinicDB; sequences 1-16 to train on, 17-19 to validate, 20-24 to score
    roads   EPFL's aerial tiles; 70 / 15 / 15 tiles, drawn once

Learning rates: on the roads each method is tried at every rate of RATES with a seed of its own
(SEARCH_SEED), and the one with the best validation score is used for all other seeds and for the polyps:
the same effort for all, and no test score plays a part.

Every run is a `segtune.fit` in a process of its own (forked from one that has imported the libraries
already); finished runs in WORK_FOLDER are not repeated. Results go to benchmarks/sam_methods.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import shutil
import sys
from pathlib import Path
from typing import Any

import segtune
from segtune.engine.files import write_json

FORKS = multiprocessing.get_context("forkserver")
PRELOADED = ["segtune.engine.fit", "segtune.models.sam", "transformers.models.sam.modeling_sam"]
FORKS.set_forkserver_preload(PRELOADED)
RESULT = Path(__file__).with_suffix(".json")
CLASSES = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist"
MODEL = {
    "model.width": 96,
    "model.depth": 6,
    "model.heads": 4,
    "model.global_blocks": [2, 5],
    "model.window": 6,
    "model.patch_size": 8,
    "model.image_size": 128,
    "model.decoder_width": 64,
}
TRAIN = {"train.batch_size": 8, "train.threads": 1}
DAY = {
    "data.classes": CLASSES,
    "data.ignore_index": 11,
    "data.exclude": "0001TP*",
    "data.resize": [96, 128],
    "data.scale": [0.8, 1.25],
    "optim.learning_rate": 1e-3,
    "train.epochs": 80,
    "train.validate_every": 10,
}
TASKS: dict[str, dict[str, Any]] = {
    "polyps": {"data.resize": [96, 128]},
    "roads": {"data.resize": [128, 128], "data.split_seed": 0},
}
TUNING = {
    "loss.name": "dice_cross_entropy",
    "train.steps": 100,
    "train.monitor": "foreground_iou",
    "data.scale": [0.8, 1.25],
}
VALIDATE_EVERY = {"polyps": 1, "roads": 4}
"""Epochs, about two validations in a run for either."""
METHODS: dict[str, dict[str, Any]] = {
    "zero-shot": {},
    "head": {},
    "bitfit": {},
    "norm": {},
    "ia3": {},
    "ssf": {},
    "adapter": {"method.width": 8},
    "adapter parallel": {"method.width": 8, "method.form": "parallel"},
    "vpt": {},
    "lst": {},
    "sam-adapter": {},
    "lora": {"method.rank": 4},
    "rslora": {"method.rank": 4},
    "dora": {"method.rank": 4},
    "pissa": {"method.rank": 4},
    "lora-plus": {"method.rank": 4},
    "lora-fa": {"method.rank": 4},
    "interpolated-lora": {"method.rank": 4},
    "conv-lora": {"method.rank": 4},
    "conv-lora:multi-scale": {"method.rank": 4},
    "conv-lora:inception": {"method.rank": 4},
    "conv-lora+vpt": {"method.rank": 4},
    "full": {},
    "scratch": {},
}
RATES = (1e-3, 4e-3)
SEARCH_SEED = 100


def fit(data: Path, out: Path, method: str, *settings: dict[str, Any]) -> dict[str, Any]:
    """One run; not repeated where its result lies there."""
    result = out / "result.json"
    if not result.is_file():
        if out.exists():
            shutil.rmtree(out)
        merged = {key: value for part in (MODEL, TRAIN, *settings) for key, value in part.items()}
        print(out, method, file=sys.stderr, flush=True)
        process = FORKS.Process(target=_fit, args=(data, out, method, merged))
        process.start()
        process.join()
        assert process.exitcode == 0, f"{out} failed"
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _fit(data: Path, out: Path, method: str, settings: dict[str, Any]) -> None:
    segtune.fit(data, model="sam-vit-base", method=method, out=out, settings=settings)


def row(result: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of a run."""
    kept = (
        "method", "seed", "parameters_total", "parameters_trainable", "adapter_bytes", "train_seconds",
        "images_per_second", "peak_process_bytes", "estimated_step_bytes", "steps", "best_step",
        "precision", "device", "learning_rate",
    )  # fmt: skip
    return {
        **{key: result.get(key) for key in kept},
        "val": result["val"]["scores"],
        "test": result["test"]["scores"],
        "num_test_images": result["test"]["num_images"],
    }


def polyps(source: Path, target: Path) -> Path:
    """A copy of CVC-ClinicDB whose split has a test part: whole sequences, never single frames."""
    table = target / "frames.csv"
    if not table.is_file():
        shutil.copytree(source, target, dirs_exist_ok=True)
        rows = list(csv.DictReader((source / "frames.csv").open(encoding="utf-8")))
        for entry in rows:
            sequence = int(entry["sequence"])
            entry["split"] = "train" if sequence <= 16 else "val" if sequence <= 19 else "test"
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return target


def main() -> None:
    """Runs everything that has no result yet, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="methods to run now; the JSON holds all that are finished")
    arguments = parser.parse_args()
    shared, work = arguments.data.resolve(), arguments.work

    day = fit(shared / "camvid", work / "day", "scratch", DAY)
    weights = work / "day.safetensors"
    if not weights.is_file():
        segtune.merge(work / "day", weights)
    folders = {"polyps": polyps(shared / "cvc612", work / "cvc612"), "roads": shared / "epfl_roads"}
    report: dict[str, Any] = {
        "what": "a small SAM, trained on CamVid's day clips, tuned for polyps and for roads",
        "settings": {
            "model": MODEL,
            "train": TRAIN,
            "day": DAY,
            "tasks": TASKS,
            "tuning": TUNING,
            "methods": METHODS,
            "rates": RATES,
            "search_seed": SEARCH_SEED,
        },
        "versions": day["versions"],
        "day": row(day),
        "search": [],
        "rows": [],
    }
    for name, settings in METHODS.items():
        if arguments.only is None or name in arguments.only:
            run_method(name, settings, folders, work, weights, arguments.seeds)
    for task in TASKS:
        for name in METHODS:
            collect(report, folder_of(work, task, name), task, name)
    write_json(RESULT, report)


def run_method(
    name: str, settings: dict[str, Any], folders: dict[str, Path], work: Path, weights: Path, seeds: int
) -> None:
    """The search of one method's learning rate, and all its runs."""
    method = name.partition(" ")[0]
    base = {} if method == "scratch" else {"model.weights": str(weights)}

    def run(task: str, place: str, own: dict[str, Any]) -> dict[str, Any]:
        common = (TASKS[task], TUNING, {"train.validate_every": VALIDATE_EVERY[task]}, base, settings, own)
        return fit(folders[task], folder_of(work, task, name) / place, method, *common)

    if method == "zero-shot":
        for task in TASKS:
            run(task, "seed0", {})
        return
    scores = {}
    for rate in RATES:
        found = run("roads", f"search-{rate:g}", {"optim.learning_rate": rate, "train.seed": SEARCH_SEED})
        scores[rate] = found["val"]["scores"]["foreground_iou"]
    best = max(scores, key=lambda rate: scores[rate])
    for task in TASKS:
        for seed in range(seeds):
            run(task, f"seed{seed}", {"optim.learning_rate": best, "train.seed": seed})


def folder_of(work: Path, task: str, name: str) -> Path:
    """Where the runs of a method on a task lie."""
    return work / task / name.replace(" ", "-").replace(":", "-")


def collect(report: dict[str, Any], folder: Path, task: str, name: str) -> None:
    """Puts the finished runs of one method into the report."""
    for result in sorted(folder.glob("*/result.json")):
        entry = {"task": task, "name": name, **row(json.loads(result.read_text(encoding="utf-8")))}
        if result.parent.name.startswith("search"):
            report["search"].append({**entry, "test": None})
        else:
            report["rows"].append(entry)


if __name__ == "__main__":
    main()
