"""What a run's time is spent on, for a data set of 1,000 generated images with every setting at its default.

Usage: python benchmarks/run_time.py [--epochs 3] [--side 128] [--threads 1] [--in-turn-only]

1,000 images, divided by the default shares into 700 to train on, 150 to validate on after every epoch and 150
to test on. The network is a small U-Net, tuned with LoRA. The run's seconds are those of the clock. What an
image costs in training and in a validation is measured besides, on the same network in this process: parts
follow each other in every repeat, in milliseconds of the processor. `--in-turn-only` measures nothing else.
Results go to benchmarks/run_time.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from segtune.engine.build import place
from segtune.engine.infer import Inference, InferenceSettings, most_probable
from segtune.methods import METHODS
from segtune.methods.apply import apply
from segtune.metrics.tally import Tally
from segtune.models import MODELS
from segtune.models.build import build_model

RESULT = Path(__file__).with_suffix(".json")
NUM_IMAGES = 1000
SETTINGS = {"model.depth": 3, "model.width": 16, "train.batch_size": 8, "train.precision": "32"}


def write_data(folder: Path, side: int) -> None:
    """Squares of two colours on noise, one class each."""
    for number in range(NUM_IMAGES):
        random = np.random.default_rng(number)
        mask = np.zeros((side, side), np.uint8)
        for label in (1, 2):
            top, left = random.integers(0, side - side // 4, 2)
            mask[top : top + side // 4, left : left + side // 4] = label
        colours = np.array(((90, 120, 60), (200, 40, 40), (40, 60, 200)), float)
        image = colours[mask] + random.normal(0, 25, (side, side, 3))
        for kind, array in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", mask)):
            path = folder / kind / f"{number:04d}.{'jpg' if kind == 'images' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


def in_turn(side: int, threads: int, repeats: int = 7) -> dict[str, float]:
    """Milliseconds of the processor that an image costs in each part of training and validation: medians."""
    torch.set_num_threads(threads)
    num_classes, batch = 3, SETTINGS["train.batch_size"]
    settings = MODELS.settings("unet")(depth=SETTINGS["model.depth"], width=SETTINGS["model.width"])
    model = build_model("unet", num_classes, settings)
    apply(model, model.sites(), {"lora": METHODS.settings("lora")()})
    place(model, torch.device("cpu")).eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    images = torch.rand(batch, 3, side, side)
    masks = torch.randint(num_classes, (batch, side, side))
    last = images.contiguous(memory_format=torch.channels_last)
    inference = Inference(model, InferenceSettings(precision=SETTINGS["train.precision"]))
    probabilities = inference.probabilities(images)

    def step() -> None:
        F.cross_entropy(model.train()(last).logits, masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    def evaluated(size: int) -> None:
        model.eval()
        for part in images.split(size):
            inference.probabilities(part)

    def scores() -> None:
        tally = Tally(num_classes, 255)
        for number, (found, mask) in enumerate(zip(most_probable(probabilities), masks, strict=True)):
            tally.update(found, mask, str(number))

    parts: dict[str, Callable[[], object]] = {
        "training step": step,
        "forward pass in training": lambda: model.train()(last),
        "probabilities in a validation": lambda: evaluated(batch),
        "the same, images one by one": lambda: evaluated(1),
        "classes and confusion matrix": scores,
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for repeat in range(repeats + 1):
        for name, part in parts.items():
            begin = time.process_time()
            part()
            if repeat:  # the first one warms up
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(values) / batch * 1e3 for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--in-turn-only", action="store_true", help="keep the times of the run that is there")
    given = parser.parse_args()
    if given.in_turn_only:
        kept = json.loads(RESULT.read_text())
        kept["in_turn_milliseconds"] = in_turn(kept["side"], given.threads)
        RESULT.write_text(json.dumps(kept, indent=2) + "\n")
        return
    settings = {
        **SETTINGS,
        "train.epochs": given.epochs,
        "train.threads": given.threads,
        "train.accelerator": "cpu",
        "data.classes": "ground,red,blue",
    }
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        write_data(data, given.side)
        words = ["fit", str(data), "--model", "unet", "--method", "lora", "--out", str(run), "--profile"]
        words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        subprocess.run([sys.executable, "-m", "segtune", *words], check=True)
        result = json.loads((run / "result.json").read_text())
        profile = json.loads((run / "profile" / "profile.json").read_text())
    seconds = result["seconds"]
    of_epochs = seconds["training"] + seconds["validation"] + seconds["checkpoints"]
    RESULT.write_text(
        json.dumps(
            {
                "images": NUM_IMAGES,
                "side": given.side,
                "settings": settings,
                "splits": result["splits"],
                "seconds": seconds,
                "share_of_an_epoch": {
                    name: seconds[name] / of_epochs for name in ("training", "validation", "checkpoints")
                },
                "start_up_share_of_the_run": seconds["start_up"] / sum(seconds.values()),
                "profile": profile,
                "in_turn_milliseconds": in_turn(given.side, given.threads),
                "versions": result["versions"],
                "device": result["device"],
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
