"""Makes small data sets on disk for the tests of the data package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Write = Callable[..., Path]


def _pillow(array: Any, palette: Any = None) -> Image.Image:
    image = Image.fromarray(np.asarray(array))
    if palette is not None:
        indexed = Image.new("P", image.size)
        indexed.frombytes(image.tobytes())
        indexed.putpalette([channel for colour in palette for channel in colour])
        return indexed
    return image


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an array as an image file below the test's folder; returns its path."""

    def function(name: str, array: Any, *, palette: Any = None, **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _pillow(array, palette).save(path, **options)
        return path

    return function


@pytest.fixture
def picture() -> Callable[..., Any]:
    """Random images [H, W, 3] that are different for each seed, and never near duplicates."""

    def function(seed: int = 0, height: int = 24, width: int = 32) -> Any:
        random = np.random.default_rng(seed)
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))

    return function


@pytest.fixture
def make_folder(write: Write, picture: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes images/N.png and masks/N.png for given masks; returns the root."""

    def function(masks: Any, *, suffix: str = ".png", palette: Any = None, **options: Any) -> Path:
        for i, mask in enumerate(masks):
            array = np.asarray(mask)
            write(f"images/{i}.png", picture(i, array.shape[0], array.shape[1]))
            write(f"masks/{i}{suffix}", array, palette=palette, **options)
        return tmp_path

    return function
