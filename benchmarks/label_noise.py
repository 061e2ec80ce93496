"""How many of the masks that were made wrong on purpose `segtune data check --run` finds in CamVid.

Usage: python benchmarks/label_noise.py [DATA] (default: ../shared/data/camvid)

CamVid at 120 x 160 pixels. Of 367 training and 101 validation masks, 36 and 9 are made wrong: a third is
shifted by 13 rows and 20 columns (around the border), a third exchanged among themselves, a third
emptied (all sky). A small U-Net is trained on that for 300 steps from random weights, and asked. Results
go to benchmarks/label_noise.json.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

import segtune
from segtune.data.check import check_data
from segtune.data.settings import DataSettings
from segtune.data.suspects import FEWEST, LIMIT, NARROWEST
from segtune.engine.files import write_json
from segtune.engine.run import versions
from segtune.engine.suspects import with_suspects

RESULT = Path(__file__).with_suffix(".json")
KINDS = ("shift", "swap", "empty")
WRONG = {"train": 12, "val": 3, "test": 0}
"""Split -> wrong masks of each kind."""
SIZE = (160, 120)
VOID = 11
NAMES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian"),
    "bicyclist",
)
DATA = {"values": {**{k: k for k in range(VOID)}, VOID: 255}, "classes": NAMES, "crop": None}
SETTINGS = {
    **{f"data.{key}": value for key, value in DATA.items()},
    "model.depth": 3,
    "model.width": 8,
    "train.steps": 300,
    "train.threads": 1,
    "train.precision": "32",
    "train.accelerator": "cpu",
    "optim.learning_rate": 0.003,
}


def write_wrong(source: Path, target: Path) -> dict[str, str]:
    """Writes the small copy; which image of which split was made wrong in which way."""
    generator = random.Random(7)
    truth = {}
    for split, count in WRONG.items():
        for kind in ("images", "masks"):
            (target / split / kind).mkdir(parents=True)
        for path in sorted((source / split / "images").iterdir()):
            picture = Image.open(path).resize(SIZE, Image.Resampling.BOX)
            picture.save(target / split / "images" / f"{path.stem}.png")
        paths = sorted((source / split / "masks").iterdir())
        masks = {
            path.stem: np.asarray(Image.open(path).resize(SIZE, Image.Resampling.NEAREST)) for path in paths
        }
        chosen = [path.stem for path in generator.sample(paths, len(KINDS) * count)]
        ways = {name: KINDS[place // count] for place, name in enumerate(chosen)}
        swapped = [name for name in chosen if ways[name] == "swap"]
        for name, sound in masks.items():
            way, mask = ways.get(name), sound
            if way == "shift":
                mask = np.roll(sound, (13, 20), (0, 1))
            elif way == "swap":
                mask = masks[swapped[(swapped.index(name) + 1) % len(swapped)]]
            elif way == "empty":
                mask = np.zeros_like(sound)
            if way is not None:
                truth[f"{split}/{name}"] = way
            Image.fromarray(mask).save(target / split / "masks" / f"{name}.png")
    return truth


def main() -> None:
    """Writes, trains, asks."""
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/camvid")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = write_wrong(source, folder / "data")
        done = segtune.fit(
            folder / "data", model="unet", method="scratch", out=folder / "run", settings=SETTINGS
        )
        settings = DataSettings(**DATA)  # type: ignore[arg-type]
        report = with_suspects(check_data(folder / "data", settings), folder / "run", settings)
    rows = []
    for split in ("train", "val"):
        listed = [f"{split}/{s.sample.name}" for s in report.suspects if s.sample.split == split]
        found = Counter(truth[name] for name in listed if name in truth)
        made = Counter(way for name, way in truth.items() if name.startswith(f"{split}/"))
        rows.append(
            {
                "split": split,
                "images": report.splits[split],
                "made_wrong": dict(made),
                "found": dict(found),
                "listed": len(listed),
                "listed_of_the_sound": len(listed) - found.total(),
            }
        )
        print(rows[-1], flush=True)
    rule = {"deviations": LIMIT, "narrowest": NARROWEST, "fewest": FEWEST}
    val = done.result["val"]["scores"]
    write_json(RESULT, {"rule": rule, "val": val, "steps": 300, "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
