"""Converts GTA5 into files that are smaller and read faster: JPEG images and masks of label numbers.

The result is GTA5 again: images/00001.jpg, labels/00001.png. Every file is written whole or not at all, so a
conversion that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from segtune.data.base import DataIndex, Sample
from segtune.data.files import Progress, map_threads
from segtune.data.gta5 import GTA5_LABELS, IMAGES, MASKS, SPLIT_FILE, Gta5
from segtune.data.settings import DataSettings
from segtune.errors import DataError, UsageError

RECORD = "convert.json"
"""Beside the result: what it was made with."""
QUALITY = 95
_TEMPORARY = ".converting-"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion did."""

    written: int
    """Frames written now."""
    there: int
    """Frames that were there already."""
    left_out: tuple[str, ...]
    """Frames that cannot be converted, with the reason."""
    bytes_before: int
    """Size of the images that were written now, in bytes."""
    bytes_after: int


def convert_gta5(
    source: Path, target: Path, *, quality: int = QUALITY, progress: Progress | None = None
) -> Converted:
    """Writes GTA5 with JPEG images and masks of label numbers.

    Args:
        source: GTA5 as published.
        target: folder to write, new or of a conversion that was stopped.
        quality: of JPEG, 1..95.
        progress: called with the number of frames done and their total.

    Returns:
        What was done.

    Raises:
        UsageError: the target is the source, holds something else, or was made with another quality.
        DataError: the source is not GTA5, or none of its frames can be converted.
    """
    if Gta5().detect(source) is None:
        raise DataError(
            f"{source} is not GTA5",
            hint=f"it holds {IMAGES}/00001.png and {MASKS}/00001.png, from 00001 to 24966",
        )
    if target.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(target.resolve()):
        raise UsageError(f"{target} and {source} lie in each other", hint="write into a new folder")
    index = Gta5().read(source, DataSettings(options={"classes": 35, "split": "fractions"}))
    _start(source, target, quality)
    results = map_threads(lambda sample: _convert(index, sample, target, quality), index.samples, progress)
    left_out = tuple(result for result in results if isinstance(result, str))
    sizes = [result for result in results if not isinstance(result, str)]
    written = [size for size in sizes if size != (0, 0)]
    if left_out and not sizes:
        raise DataError(f"none of {len(results)} frames can be converted, e.g. {left_out[0]}")
    if (source / SPLIT_FILE).is_file():
        _whole(target / SPLIT_FILE, lambda path: shutil.copyfile(source / SPLIT_FILE, path))
    return Converted(
        written=len(written),
        there=len(sizes) - len(written),
        left_out=left_out,
        bytes_before=sum(before for before, _ in written),
        bytes_after=sum(after for _, after in written),
    )


def _start(source: Path, target: Path, quality: int) -> None:
    """Makes the folders, or makes sure that those there are of the same conversion."""
    record = {"format": "gta5", "quality": quality}
    path = target / RECORD
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip() != json.dumps(record):
            raise UsageError(
                f"{target} was made with other settings: {text.strip()[:80]}",
                hint="name a new folder, or go on with the same settings",
            )
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} holds something already", hint="name a new folder")
    for folder in (target / IMAGES, target / MASKS):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_TEMPORARY}*"):
            left.unlink()
    _whole(path, lambda temporary: temporary.write_text(json.dumps(record) + "\n", encoding="utf-8"))


def _convert(index: DataIndex, sample: Sample, target: Path, quality: int) -> tuple[int, int] | str:
    """Bytes of the image before and after, (0, 0) where it was there, or why it cannot be converted."""
    image_path = target / IMAGES / f"{sample.name}.jpg"
    mask_path = target / MASKS / f"{sample.name}.png"
    if image_path.is_file() and mask_path.is_file():
        return 0, 0
    try:
        image, mask = index.reader.image(sample), index.reader.mask(sample)
    except DataError as error:
        return error.message
    if image.shape[:2] != mask.shape:
        return f"{sample.name}: the image has {image.shape[:2]} pixels, the mask {mask.shape}"
    if image.dtype != np.uint8:
        return f"{sample.name}: the image is {image.dtype}, JPEG holds 8 bits"
    labels = Pillow.fromarray(mask)
    labels.putpalette([channel for label in GTA5_LABELS for channel in label.colour])
    picture = Pillow.fromarray(image)
    _whole(mask_path, lambda path: labels.save(path, format="PNG"))
    _whole(image_path, lambda path: picture.save(path, format="JPEG", quality=quality))
    return sample.image.stat().st_size, image_path.stat().st_size


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets a file be written under a temporary name, then puts it in place."""
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
