"""What a file of labelme holds, checked, and how its shapes are drawn.

In labelme a pixel's centre has whole coordinates, and outlines belong to their shape.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from segtune.data.base import Image, Mask, Origin, Sample
from segtune.data.channels import ChannelRule
from segtune.data.files import MAX_PIXELS, PLAIN, decode_image, decode_mask, image_size, read_image
from segtune.data.regions import Points, read_points
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX

SNIFFED = 65536
MAX_BYTES = 1_000_000_000
IGNORED, BACKGROUND = "__ignore__", "_background_"
FEWEST = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}
"""Kind of shape -> points that it needs."""
THIN = frozenset({"point", "points", "line", "linestrip"})


@dataclass(frozen=True)
class Shape:
    """One shape and its label."""

    kind: str
    label: str
    points: Points
    pixels: NDArray[np.bool_] | None = None
    """[h, w] of a mask, from the first point on."""
    group: int | None = None
    """Shapes of one label and group are one object."""

    def paint(self, mask: NDArray[Any], label: int) -> None:
        """Sets the shape's pixels in a map [H, W]."""
        height, width = mask.shape
        if self.kind == "polygon":
            picture = Pillow.new("1", (width, height))
            corners = [(float(x), float(y)) for x, y in self.points]
            ImageDraw.Draw(picture).polygon(corners, fill=1, outline=1)
            mask[np.asarray(picture)] = label
        elif self.kind == "circle":
            (x, y), radius = self.points[0], float(np.hypot(*(self.points[1] - self.points[0])))
            across = (np.arange(width) - x) ** 2
            down = (np.arange(height) - y) ** 2
            mask[across[None] + down[:, None] <= radius**2] = label
        elif self.kind == "rectangle":
            low, high = np.floor(self.points.min(axis=0)), np.floor(self.points.max(axis=0))
            (left, top), (right, bottom) = (
                np.clip(corner, 0, (width, height)).astype(np.int64) for corner in (low, high + 1)
            )
            mask[top:bottom, left:right] = label
        else:
            assert self.pixels is not None
            left, top = np.rint(self.points[0]).astype(np.int64).tolist()
            rows, columns = np.nonzero(self.pixels)
            rows, columns = rows + top, columns + left
            inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            mask[rows[inside], columns[inside]] = label


@dataclass(frozen=True, kw_only=True)
class LabelmeFile:
    """The checked content of one file."""

    path: Path
    image_path: str
    has_image: bool
    """Whether the file holds the image itself."""
    size: tuple[int, int] | None
    """Height and width, where the file states them."""
    shapes: tuple[Shape, ...]
    thin: int
    """Points and lines, which are left out."""


def looks_like_labelme(path: Path) -> bool:
    """Whether a file seems to be one of labelme's, from its beginning."""
    try:
        with path.open("rb") as file:
            text = file.read(SNIFFED)
    except OSError:
        return False
    # Shapes stand at the beginning; the image, which may be large, behind them.
    is_object = text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    return is_object and b'"shapes"' in text and (b'"shape_type"' in text or b'"imagePath"' in text)


def read_labelme(path: Path) -> LabelmeFile:
    """Reads and checks a file.

    Raises:
        DataError: it is no JSON, lacks its parts, or states what cannot be.
    """
    data = _parse(path)
    shapes = data.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{path}: there is no list 'shapes'", hint="is this a file of labelme?")
    made = [_shape(path, place, shape) for place, shape in enumerate(shapes, start=1)]
    height, width = data.get("imageHeight"), data.get("imageWidth")
    size = None
    if (height, width) != (None, None):
        if type(height) is not int or type(width) is not int or height < 1 or width < 1:
            raise DataError(f"{path}: the image has the height {height!r} and the width {width!r}")
        if height * width > MAX_PIXELS:
            raise DataError(
                f"{path}: the image is said to have {width} x {height} pixels, more than {MAX_PIXELS:,}",
                hint="cut the image into tiles",
            )
        size = (height, width)
    image_path = data.get("imagePath")
    return LabelmeFile(
        path=path,
        image_path=image_path if isinstance(image_path, str) else "",
        has_image=isinstance(data.get("imageData"), str),
        size=size,
        shapes=tuple(shape for shape in made if shape is not None),
        thin=sum(shape is None for shape in made),
    )


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES:,} bytes", hint="is this a file of labelme?")
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not readable as JSON: {reason}", hint="save it again") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: holds {type(data).__name__}, no shapes", hint="is this a file of labelme?")
    return data


def _shape(path: Path, place: int, entry: Mapping[str, Any]) -> Shape | None:
    """A shape, or None for one that covers no pixels."""
    where = f"{path}: shape {place}"
    label, kind = entry.get("label"), entry.get("shape_type") or "polygon"
    if not isinstance(label, str):
        raise DataError(f"{where} has the label {label!r}", hint="labels are texts")
    if kind in THIN:
        return None
    if kind not in FEWEST:
        raise DataError(f"{where} is a {kind!r}", hint=f"shapes are {', '.join(FEWEST)}")
    points = read_points(where, entry.get("points"))
    if len(points) < FEWEST[kind]:
        if kind == "polygon":
            return None
        raise DataError(f"{where}, a {kind}, has {len(points)} points", hint=f"it needs {FEWEST[kind]}")
    pixels = None
    if kind == "mask":
        pixels = decode_mask(_bytes(where, entry.get("mask")), path).values > 0
        if pixels.ndim != 2:
            raise DataError(f"{where} has a mask of {pixels.shape[2]} channels", hint="it has one")
    group = entry.get("group_id")
    return Shape(kind, label, points, pixels, group if type(group) is int else None)


def _bytes(where: str, text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=False)
    except (TypeError, ValueError, binascii.Error):
        raise DataError(f"{where}: what should be an image is no base64 text", hint="save it again") from None


@dataclass(frozen=True, kw_only=True)
class LabelmeReader:
    """Draws the masks of labelme files."""

    files: Mapping[str, LabelmeFile]
    """By the sample's name."""
    labels: Mapping[str, int]
    """Label -> class."""
    channels: ChannelRule = PLAIN

    def origin(self, sample: Sample) -> Origin:
        """The JSON file and the image's, and which label is which class."""
        files = dict.fromkeys((self.files[sample.name].path, sample.image))
        return Origin(tuple(files), f"labelme {self.channels} {self.labels}")

    def image(self, sample: Sample) -> Image:
        """[H, W, C], from the image's own file or out of the JSON file."""
        if sample.image.suffix.lower() != ".json":
            return read_image(sample.image, self.channels)
        content = _bytes(str(sample.image), _parse(sample.image).get("imageData"))
        return decode_image(content, sample.image, self.channels)

    def mask(self, sample: Sample) -> Mask:
        """[H, W] class map."""
        mask = np.zeros(self._size(sample), np.uint8)
        for shape in self.files[sample.name].shapes:
            if shape.label in (IGNORED, BACKGROUND):
                shape.paint(mask, IGNORE_INDEX if shape.label == IGNORED else 0)
            elif shape.label in self.labels:
                shape.paint(mask, self.labels[shape.label])
        return mask

    def instances(self, sample: Sample) -> NDArray[np.int32]:
        """[H, W] the number of the object that is seen, from 1 on; 0 where there is none."""
        numbers = np.zeros(self._size(sample), np.int32)
        objects: dict[tuple[str, int], int] = {}
        for place, shape in enumerate(self.files[sample.name].shapes):
            if shape.label in (IGNORED, BACKGROUND):
                shape.paint(numbers, 0)
            elif shape.label in self.labels:
                # Without a group each shape is an object of its own.
                key = (shape.label, shape.group) if shape.group is not None else ("", place)
                shape.paint(numbers, objects.setdefault(key, len(objects) + 1))
        return numbers

    def _size(self, sample: Sample) -> tuple[int, int]:
        file = self.files[sample.name]
        if file.size is not None:
            return file.size
        if sample.image.suffix.lower() == ".json":
            image = self.image(sample)
            return image.shape[0], image.shape[1]
        return image_size(sample.image)
