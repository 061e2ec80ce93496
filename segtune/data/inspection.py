"""Looks at every pixel of one sample: what can be read, what does not fit, what stands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from segtune.data.base import DataIndex, Image, Sample
from segtune.data.files import SUFFIXES, read_header
from segtune.data.masks import FileReader, describe_outside
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX

THUMBNAIL = 32
"""Height and width, in pixels, of the thumbnails that duplicates are looked for with."""


@dataclass(kw_only=True)
class Inspection:
    """What one sample's files hold."""

    sample: Sample
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    """Files that cannot be read, with the reason."""
    size: tuple[int, int] | None = None
    """Height and width of the upright image, in pixels."""
    mask_size: tuple[int, int] | None = None
    rotated: bool = False
    """Whether the image's EXIF tag turns or mirrors it, and the mask's does not."""
    alpha: bool = False
    num_frames: int = 1
    outside: str = ""
    """Mask values that mean no class, as text."""
    counts: NDArray[np.int64] | None = None
    """[256] pixels of each class, and of the ignored value at 255."""
    thumbnail: NDArray[np.uint8] | None = None
    """[32, 32] grey."""

    @property
    def fits(self) -> bool:
        """Whether image and mask can be read and have the same size."""
        return not self.unreadable and (self.mask_size is None or self.size == self.mask_size)


def inspect(index: DataIndex, sample: Sample) -> Inspection:
    """Reads the image and the mask of a sample and notes what they hold."""
    result = Inspection(sample=sample)
    try:
        header = read_header(sample.image) if isinstance(index.reader, FileReader) else None
        image = index.reader.image(sample)
    except DataError as error:
        result.unreadable.append((sample.image, _reason(error, sample.image)))
    else:
        result.size = (image.shape[0], image.shape[1])
        result.thumbnail = _thumbnail(image)
        if header is not None:
            result.alpha = header.mode in {"RGBA", "LA", "PA"} and image.shape[2] <= 3
            result.num_frames = header.frames
            result.rotated = header.rotated
    if sample.mask is not None:
        try:
            _inspect_mask(index, sample, sample.mask, result)
        except DataError as error:
            result.unreadable.append((sample.mask, _reason(error, sample.mask)))
    return result


def inspect_case(index: DataIndex, samples: Sequence[Sample]) -> Inspection:
    """Reads all samples of a case: of an image the image, of a volume its slices, noted as one."""
    results = [inspect(index, sample) for sample in samples]
    # The middle stands for the volume where pictures are compared: neighbours always look alike.
    whole = results[len(results) // 2]
    counts = [result.counts for result in results if result.counts is not None]
    whole.counts = np.sum(counts, axis=0) if counts else None
    whole.unreadable = list(dict.fromkeys(item for result in results for item in result.unreadable))
    return whole


def _inspect_mask(index: DataIndex, sample: Sample, path: Path, result: Inspection) -> None:
    if isinstance(index.reader, FileReader):
        mask, outside = index.reader.coding.decode(index.reader.read(path))
        result.outside = describe_outside(outside) if outside else ""
        if path.suffix.lower() in SUFFIXES:
            result.rotated = result.rotated and not read_header(path).rotated
    else:
        mask = index.reader.mask(sample)
    result.mask_size = (mask.shape[0], mask.shape[1])
    result.counts = np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1).astype(np.int64)


def _thumbnail(image: Image) -> NDArray[np.uint8]:
    # Very large images are thinned out first; the box filter does the rest.
    step = max(1, min(image.shape[:2]) // (THUMBNAIL * 16))
    scale = {"u1": 1.0, "u2": 1 / 257}.get(image.dtype.str[1:], 255.0)
    grey = image[::step, ::step].mean(axis=2, dtype=np.float32) * np.float32(scale)
    small = Pillow.fromarray(grey).resize((THUMBNAIL, THUMBNAIL), Pillow.Resampling.BOX)
    rounded: NDArray[np.uint8] = np.clip(np.rint(np.asarray(small)), 0, 255).astype(np.uint8)
    return rounded


def _reason(error: DataError, path: Path) -> str:
    """The message without the path in front, which findings give relative to the root."""
    return error.message.removeprefix(f"{path}: ")
