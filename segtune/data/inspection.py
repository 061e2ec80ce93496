"""Looks at every pixel of one sample: what can be read, what does not fit, what stands out."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from segtune.data.base import DataIndex, Image, Sample
from segtune.data.files import SUFFIXES, MaskFile, read_header
from segtune.data.masks import FileReader, MaskCoding, describe_outside, file_grey
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX

THUMBNAIL = 32
"""Height and width, in pixels, of the thumbnails that duplicates are looked for with."""
FREQUENT = 16
"""Grey levels of a picture that are taken for its most frequent ones."""
CLASS_MAP, PHOTO = 0.95, 0.6
"""Share of the 16 most frequent grey levels from which on, and below which, a file looks like one."""


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
    digest: str = ""
    """Of the image file's bytes; empty where the image is no file of its own."""
    image_type: str = ""
    """NumPy's name of the image's type, e.g. "uint16"."""
    image_range: tuple[float, float] = (0.0, 0.0)
    """Values that 1% of the image's pixels are below, and above."""
    image_focus: float = 0.0
    """Share of the image's pixels that have one of its 16 most frequent grey levels: near 1 in class maps."""
    mask_focus: float = 1.0
    """The same of the mask file."""
    stored: Counter[int] = field(default_factory=Counter)
    """Grey value or index in the mask file -> pixels; empty where colours decide."""
    between: Counter[int] = field(default_factory=Counter)
    """The same for those pixels that lie strictly between their two neighbours in value."""
    border: tuple[int, int] = (0, 0)
    """Pixels of class 1 on the mask's border, and all labelled pixels there."""

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
        _describe_image(image, result)
        if sample.slice is None and sample.image.suffix.lower() in SUFFIXES:
            result.digest = hashlib.blake2b(sample.image.read_bytes(), digest_size=16).hexdigest()
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
        file = index.reader.read(path)
        mask, outside = index.reader.coding.decode(file)
        _describe_stored(file, index.reader.coding, result)
        result.outside = describe_outside(outside) if outside else ""
        if path.suffix.lower() in SUFFIXES:
            result.rotated = result.rotated and not read_header(path).rotated
    else:
        mask = index.reader.mask(sample)
    result.mask_size = (mask.shape[0], mask.shape[1])
    result.counts = np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1).astype(np.int64)
    edge = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    result.border = (int((edge == 1).sum()), int((edge != IGNORE_INDEX).sum()))


def _describe_image(image: Image, result: Inspection) -> None:
    step = max(1, min(image.shape[:2]) // 256)
    thin = image[::step, ::step]
    low, high = np.percentile(thin, (1, 99))
    result.image_type, result.image_range = str(image.dtype), (float(low), float(high))
    result.image_focus = focus(thin.max(axis=2))


def _describe_stored(file: MaskFile, coding: MaskCoding, result: Inspection) -> None:
    grey = file_grey(file)
    step = max(1, min(grey.shape[:2]) // 256)
    result.mask_focus = focus(grey[::step, ::step])
    if coding.coding == "rgb" or (file.values.ndim == 3 and coding.coding != "binary"):
        return
    counts = np.bincount(grey.ravel())
    result.stored = Counter({int(value): int(counts[value]) for value in np.flatnonzero(counts)})
    if len(result.stored) < 3:
        return
    middle = np.zeros(grey.shape, np.bool_)
    middle[:, 1:-1] = _strictly_between(grey[:, :-2], grey[:, 1:-1], grey[:, 2:])
    middle[1:-1] |= _strictly_between(grey[:-2], grey[1:-1], grey[2:])
    counts = np.bincount(grey[middle])
    result.between = Counter({int(value): int(counts[value]) for value in np.flatnonzero(counts)})


def _strictly_between(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> NDArray[np.bool_]:
    """Where b lies between a and c and equals neither."""
    found: NDArray[np.bool_] = ((a < b) & (b < c)) | ((a > b) & (b > c))
    return found


def focus(grey: NDArray[Any]) -> float:
    """Share of pixels that have one of the 16 most frequent of 256 grey levels.

    Args:
        grey: [H, W], any type.
    """
    if grey.dtype != np.uint8:
        low, high = float(grey.min()), float(grey.max())
        grey = ((grey.astype(np.float32) - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    counts = np.bincount(grey.ravel(), minlength=256)
    return float(np.sort(counts)[-FREQUENT:].sum() / max(counts.sum(), 1))


def to_values(result: Inspection) -> dict[str, Any] | None:
    """An inspection as plain JSON values; None where a file could not be read, which may pass."""
    if result.unreadable:
        return None
    values = {name: getattr(result, name) for name in _PLAIN}
    values["counts"] = None if result.counts is None else _sparse(result.counts)
    values["thumbnail"] = (
        None if result.thumbnail is None else base64.b85encode(result.thumbnail.tobytes()).decode("ascii")
    )
    return values


def from_values(sample: Sample, values: dict[str, Any]) -> Inspection:
    """The inspection of a sample that `to_values` gave.

    Raises:
        ValueError: the values are damaged; KeyError and TypeError likewise.
    """
    result = Inspection(sample=sample, **{name: values[name] for name in _PLAIN})
    for name in ("size", "mask_size", "image_range", "border"):
        pair = values[name]
        setattr(result, name, None if pair is None else (pair[0], pair[1]))
    result.stored = Counter({int(value): int(n) for value, n in values["stored"].items()})
    result.between = Counter({int(value): int(n) for value, n in values["between"].items()})
    if values["counts"] is not None:
        result.counts = np.zeros(IGNORE_INDEX + 1, np.int64)
        for label, n in values["counts"].items():
            result.counts[int(label)] = int(n)
    if values["thumbnail"] is not None:
        pixels = np.frombuffer(base64.b85decode(values["thumbnail"]), np.uint8)
        result.thumbnail = pixels.reshape(THUMBNAIL, THUMBNAIL)
    return result


def _sparse(counts: NDArray[np.int64]) -> dict[str, int]:
    return {str(label): int(counts[label]) for label in np.flatnonzero(counts)}


_PLAIN = (
    *("size", "mask_size", "rotated", "alpha", "num_frames", "outside", "digest", "image_type"),
    *("image_range", "image_focus", "mask_focus", "stored", "between", "border"),
)
"""Fields that JSON holds as they are, or nearly so."""


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
