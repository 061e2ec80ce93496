"""What a run's time is spent on, for a data set of 1,000 generated images with every setting at its default.

Usage: python benchmarks/run_time.py [--epochs 3] [--side 128] [--threads 1]

1,000 images, divided by the default shares into 700 to train on, 150 to validate on after every epoch and 150
to test on. The network is a small U-Net, tuned with LoRA. Results go to benchmarks/run_time.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
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
                "versions": result["versions"],
                "device": result["device"],
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
