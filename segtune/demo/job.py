"""The whole job on generated scenes: a network that knows day learns dusk, by three methods.

Every number of the table is measured in the run that prints it. Each method trains in a process of
its own, through the same command that a user would type, so that memory and time are its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from segtune.config.load import load_settings
from segtune.config.run import RunConfig
from segtune.data.base import DataIndex
from segtune.data.open import open_data
from segtune.data.preview import overlay
from segtune.data.transforms import to_tensor
from segtune.demo.scenes import write_dataset
from segtune.engine.build import choose_device, choose_precision, place
from segtune.engine.evaluate import evaluate_samples
from segtune.engine.files import write_json, write_with
from segtune.engine.infer import Inference, InferenceSettings
from segtune.engine.predict import display
from segtune.engine.run import load_run, versions
from segtune.errors import SegtuneError
from segtune.models.build import build_model
from segtune.models.weights import load_weights
from segtune.report.panel import draw_panel

METHODS = ("head", "lora", "full")
SEED = 7
NUM_TRAIN, NUM_VAL, NUM_TEST = 40, 16, 48
SETTINGS = {
    "model.depth": 3,
    "model.width": 16,
    "loss.name": "dice_cross_entropy",
    "train.epochs": 20,
    "train.validate_every": 5,
    "method.rank": 8,
}
NUM_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class DemoRow:
    """One line of the demo's table."""

    method: str
    miou: float
    parameters_trainable: int
    adapter_bytes: int
    train_seconds: float
    peak_process_bytes: int


def base_weights() -> Path:
    """The U-Net that was trained on generated day scenes, as shipped with the package."""
    return Path(str(files("segtune") / "assets" / "unet-day.safetensors"))


def fit_command(data: Path, method: str, out: Path) -> list[str]:
    """What a user would type behind `segtune` for one line of the table."""
    settings = {"model.weights": base_weights(), **SETTINGS}
    if method != "lora":
        settings.pop("method.rank")
    assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["fit", str(data), "--model", "unet", "--method", method, "--out", str(out), *assignments]


def run_demo(out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs the demo.

    Args:
        out: new folder for data, runs, table and pictures.
        say: told what is going on, line by line.

    Returns:
        The content of demo.json: mIoU before, and one row for each method.

    Raises:
        SegtuneError: one of the runs failed; its own message stands above.
    """
    data = out / "dusk"
    say(f"1. generating {NUM_TRAIN + NUM_VAL + NUM_TEST} street scenes at dusk in {data}")
    write_dataset(data, "dusk", num_train=NUM_TRAIN, num_val=NUM_VAL, num_test=NUM_TEST, seed=SEED)
    say("2. the base: a small U-Net that was trained on day scenes only, scored on dusk")
    index = open_data(data)
    base = _base(index)
    before = _score(base, index)
    say(f"   mIoU {before:.4f} on {NUM_TEST} test images")
    rows: list[DemoRow] = []
    for number, method in enumerate(METHODS, start=3):
        folder = out / method
        command = fit_command(data, method, folder)
        say(f"{number}. segtune " + " ".join(command))
        rows.append(_fit(method, command))
        say(f"   mIoU {rows[-1].miou:.4f}")
    best = max(rows, key=lambda row: row.miou)
    panel = out / "panel.png"
    _draw(index, base, out, panel)
    result = {
        "miou_before": before,
        "rows": [vars(row) for row in rows],
        "best": best.method,
        "panel": str(panel),
        "settings": SETTINGS,
        "num_train": NUM_TRAIN,
        "num_test": NUM_TEST,
        "versions": versions(),
    }
    write_json(out / "demo.json", result)
    return result


def _config(data: Path) -> RunConfig:
    assignments = [f"{key}={value}" for key, value in SETTINGS.items() if not key.startswith("method.")]
    flags = {"demo": {"model": {"name": "unet"}, "method": {"name": "head"}, "data": {"path": str(data)}}}
    return load_settings(flags=flags, assignments=assignments)


def _base(index: DataIndex) -> Inference:
    config = _config(index.root)
    model = build_model("unet", index.classes.num_classes, config.model_settings)
    load_weights(model, str(base_weights()))
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    return Inference(place(model.eval(), device), InferenceSettings(precision=precision))


def _score(inference: Inference, index: DataIndex) -> float:
    evaluation = evaluate_samples(
        inference, index, index.split("test"), _config(index.root).data, split="test", batch_size=8
    )
    return evaluation.scores["miou"]


def _fit(method: str, command: Sequence[str]) -> DemoRow:
    done = subprocess.run(
        [sys.executable, "-m", "segtune", *command, "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise SegtuneError(f"the demo's run of {method} failed with exit code {done.returncode}")
    result = json.loads(done.stdout)
    return DemoRow(
        method=method,
        miou=result["test"]["scores"]["miou"],
        parameters_trainable=result["parameters_trainable"],
        adapter_bytes=result["adapter_bytes"],
        train_seconds=result["train_seconds"],
        peak_process_bytes=result["peak_process_bytes"],
    )


def _draw(index: DataIndex, base: Inference, out: Path, path: Path) -> None:
    models = {"base (day)": base}
    for method in METHODS:
        loaded = load_run(out / method)
        settings = InferenceSettings.from_dict(loaded.description.inference)
        models[method] = Inference(loaded.tunable.model, settings)
    rows = []
    for sample in index.split("test")[:NUM_SHOWN]:
        image = index.reader.image(sample)
        picture = display(image)
        row = [picture, overlay(picture, index.reader.mask(sample), index.classes)]
        for inference in models.values():
            classes = inference.classes(to_tensor(image)[None])[0].numpy().astype(np.uint8)
            row.append(overlay(picture, classes, index.classes))
        rows.append(row)
    legend = list(zip(index.classes.names, index.classes.palette, strict=True))
    sheet = draw_panel(["image", "ground truth", *models], rows, legend=legend)
    write_with(path, sheet.save)
