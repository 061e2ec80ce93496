"""Tiny generated data and runs, for tests of everything that needs a whole job."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segtune.config.layers import nest
from segtune.config.load import load_config
from segtune.config.run import RunConfig
from segtune.data.base import Classes, DataIndex, Sample

CLASS_NAMES = ("ground", "square", "band")
COLOURS = ((90, 120, 60), (200, 40, 40), (40, 60, 200))

TINY: dict[str, Any] = {
    "model.depth": 1,
    "model.width": 4,
    "train.precision": "32",
    "train.accelerator": "cpu",
    "train.threads": 1,
    "train.batch_size": 2,
    "train.steps": 3,
}
TINY_SAM: dict[str, Any] = {
    "width": 16,
    "depth": 2,
    "heads": 2,
    "global_blocks": (1,),
    "window": 2,
    "image_size": 32,
    "decoder_width": 16,
}
"""Settings of a network of SAM's shape."""


def scene(seed: int, size: tuple[int, int] = (48, 64)) -> tuple[np.ndarray, np.ndarray]:
    """An image [H, W, 3] and its mask [H, W]: a red square and a blue band on green ground."""
    generator = np.random.default_rng(seed)
    height, width = size
    mask = np.zeros(size, np.uint8)
    top, left = generator.integers(0, height - 20), generator.integers(0, width - 20)
    mask[top : top + 16, left : left + 16] = 1
    start = generator.integers(0, height - 8)
    mask[start : start + 6] = 2
    image = np.array(COLOURS, np.float64)[mask] + generator.normal(0, 12, (*size, 3))
    return image.clip(0, 255).astype(np.uint8), mask


def make_data(
    root: Path,
    *,
    num_train: int = 8,
    num_val: int = 2,
    num_test: int = 2,
    sizes: tuple[tuple[int, int], ...] = ((48, 64),),
    classes: tuple[str, ...] = CLASS_NAMES,
) -> Path:
    """Writes a folder data set with given splits; image i has the size i modulo the sizes."""
    number = 0
    for split, count in (("train", num_train), ("val", num_val), ("test", num_test)):
        for _ in range(count):
            image, mask = scene(number, sizes[number % len(sizes)])
            for kind, array in (("images", image), ("masks", mask)):
                path = root / split / kind / f"scene{number:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
            number += 1
    names = ", ".join(classes)
    (root / "dataset.yaml").write_text(f"classes: [{names}]\nmasks: index\n", encoding="utf-8")
    return root


def make_config(data: Path | None = None, *, method: str = "lora", **settings: Any) -> RunConfig:
    """The configuration of a tiny run; keys have two underscores in place of the dot."""
    given = {key.replace("__", "."): value for key, value in settings.items()}
    own = {"model.name": "unet", "method.name": method, **TINY, **given}
    if "train.epochs" in own:
        del own["train.steps"]
    if data is not None:
        own["data.path"] = str(data)
    return load_config([nest(own.items(), "test")])


def set_options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as typed on a command line."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def log_lines(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind is None or line["kind"] == kind]


def tree_hash(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def python_process(*arguments: str) -> subprocess.Popen[str]:
    """`python ...` in a process of its own, with one thread."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class MemoryReader:
    """Reads samples from arrays instead of files."""

    def __init__(self, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        self.pairs = pairs

    def image(self, sample: Sample) -> np.ndarray:
        return self.pairs[sample.name][0]

    def mask(self, sample: Sample) -> np.ndarray:
        return self.pairs[sample.name][1]


def memory_index(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], split: str = "test") -> DataIndex:
    """A data set that lies in memory."""
    samples = tuple(Sample(name=n, image=Path(n), mask=Path(n), split=split) for n in pairs)
    classes = Classes(names=CLASS_NAMES, palette=COLOURS)
    return DataIndex(
        root=Path("memory"), format="memory", samples=samples, classes=classes, reader=MemoryReader(pairs)
    )
