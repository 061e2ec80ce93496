"""What a COCO annotation file holds, checked: images, categories, and the objects of each image."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segtune.data.files import MAX_PIXELS
from segtune.data.regions import (
    Points,
    Region,
    decode_counts,
    polygon_region,
    read_points,
    runs_region,
    union,
)
from segtune.errors import DataError

SNIFFED = 65536
"""Bytes at each end of a file that tell whether it is one of COCO's."""
MAX_BYTES = 4_000_000_000


@dataclass(frozen=True)
class CocoObject:
    """One annotation: a region and what it shows."""

    id: Any
    category: Any
    crowd: bool
    polygons: tuple[Points, ...] = ()
    """[N, 2] each, x and y in pixels."""
    runs: Sequence[int] | str | None = None
    """Run lengths, plain or compressed, where there are no polygons."""
    runs_size: tuple[int, int] | None = None
    """Height and width that the run lengths are for."""

    def region(self, height: int, width: int) -> Region:
        """The object's pixels in an image of this size.

        Raises:
            ValueError: the run lengths are wrong.
        """
        if self.polygons:
            return union([polygon_region(points, height, width) for points in self.polygons])
        assert self.runs is not None
        if self.runs_size != (height, width):
            raise ValueError(f"its run lengths are for {self.runs_size}, the image is {(height, width)}")
        counts = decode_counts(self.runs) if isinstance(self.runs, str) else self.runs
        return runs_region(counts, height, width)


@dataclass(frozen=True)
class CocoImage:
    """One image of the file."""

    id: Any
    file_name: str
    size: tuple[int, int] | None
    """Height and width, where the file states them."""


@dataclass(kw_only=True)
class CocoFile:
    """The checked content of one file."""

    path: Path
    images: list[CocoImage]
    categories: dict[Any, tuple[str, str]]
    """Id -> name and supercategory, ordered by id."""
    objects: dict[Any, list[CocoObject]]
    """Image id -> its objects, in the order of the file."""
    num_annotations: int
    boxes_only: int = 0
    """Annotations without a segmentation, left out."""
    strangers: list[str] = field(default_factory=list)
    """Annotations of images that the file does not list, left out."""
    uncategorised: list[str] = field(default_factory=list)
    """Annotations of categories that the file does not list, left out."""
    degenerate: int = 0
    """Polygons of fewer than three points, left out."""


def looks_like_coco(path: Path) -> bool:
    """Whether a file seems to be one of COCO's, from its two ends."""
    try:
        with path.open("rb") as file:
            text = file.read(SNIFFED)
            size = path.stat().st_size
            if size > 2 * SNIFFED:
                file.seek(size - SNIFFED)
            text += file.read(SNIFFED)
    except OSError:
        return False
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") or b'"segments_info"' in text:
        return False
    signs = ((b'"images"', b'"file_name"'), (b'"annotations"', b'"category_id"'), (b'"categories"',))
    has_objects = b'"category_id"' in text or b'"categories"' in text
    return has_objects and sum(any(word in text for word in words) for words in signs) >= 2


def read_coco(path: Path) -> CocoFile:
    """Reads and checks a file.

    Raises:
        DataError: it is no JSON, lacks its parts, or states what cannot be.
    """
    data = _parse(path)
    images = [_image(path, entry) for entry in _list(path, data, "images")]
    ids = {image.id for image in images}
    if len(ids) < len(images):
        raise DataError(f"{path}: two images have the same id", hint="give each its own")
    categories = _categories(path, _list(path, data, "categories"))
    result = CocoFile(
        path=path, images=images, categories=categories, objects=defaultdict(list), num_annotations=0
    )
    for entry in _list(path, data, "annotations"):
        _add(result, entry, ids)
    return result


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES:,} bytes", hint="divide it into several files")
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not readable as JSON: {reason}", hint="copy or export it again") from None
    if not isinstance(data, dict):
        raise DataError(
            f"{path}: holds {type(data).__name__}, not images, annotations and categories",
            hint="is this COCO's format for instances?",
        )
    return data


def _list(path: Path, data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = data.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise DataError(
            f"{path}: there is no list {key!r}", hint="COCO files have images, annotations, categories"
        )
    return value


def _key(path: Path, entry: Mapping[str, Any], key: str, what: str) -> Any:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{path}: {what} has the {key} {value!r}", hint="ids are whole numbers or texts")
    return value


def _image(path: Path, entry: Mapping[str, Any]) -> CocoImage:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{path}: an image has the file_name {name!r}", hint="it is a path of an image")
    size = (entry.get("height"), entry.get("width"))
    if size == (None, None):
        return CocoImage(_key(path, entry, "id", name), name, None)
    height, width = size
    if type(height) is not int or type(width) is not int or height < 1 or width < 1:
        raise DataError(f"{path}: {name} has the height {height!r} and the width {width!r}")
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{path}: {name} is said to have {width} x {height} pixels, more than {MAX_PIXELS:,}",
            hint="cut the image into tiles",
        )
    return CocoImage(_key(path, entry, "id", name), name, (height, width))


def _categories(path: Path, entries: Sequence[Mapping[str, Any]]) -> dict[Any, tuple[str, str]]:
    found: dict[Any, tuple[str, str]] = {}
    for entry in entries:
        name, above = entry.get("name"), entry.get("supercategory")
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: a category has the name {name!r}", hint="names are texts")
        key = _key(path, entry, "id", f"the category {name!r}")
        if key in found:
            raise DataError(f"{path}: two categories have the id {key}", hint="give each its own")
        found[key] = (name, above if isinstance(above, str) and above else name)
    if not found:
        raise DataError(f"{path}: there are no categories", hint="they name the classes")
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _add(result: CocoFile, entry: Mapping[str, Any], images: set[Any]) -> None:
    path = result.path
    name = f"annotation {entry.get('id')!r}"
    result.num_annotations += 1
    image = _key(path, entry, "image_id", name)
    category = _key(path, entry, "category_id", name)
    if image not in images:
        result.strangers.append(str(entry.get("id")))
        return
    if category not in result.categories:
        result.uncategorised.append(str(entry.get("id")))
        return
    crowd = bool(entry.get("iscrowd", 0))
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        runs, size = _runs(path, name, segmentation)
        made = CocoObject(entry.get("id"), category, crowd, (), runs, size)
    elif isinstance(segmentation, list) and segmentation:
        parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
        polygons = [read_points(f"{path}: {name}", part) for part in parts]
        kept = tuple(points for points in polygons if len(points) >= 3)
        result.degenerate += len(polygons) - len(kept)
        if not kept:
            return
        made = CocoObject(entry.get("id"), category, crowd, kept)
    elif segmentation is None or segmentation in ([], ""):
        result.boxes_only += 1
        return
    else:
        raise DataError(f"{path}: {name} has a segmentation of type {type(segmentation).__name__}")
    result.objects[image].append(made)


def _runs(path: Path, name: str, value: Mapping[str, Any]) -> tuple[Sequence[int] | str, tuple[int, int]]:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or len(size) != 2 or any(type(side) is not int for side in size):
        raise DataError(f"{path}: {name} has run lengths of size {size!r}", hint="it is [height, width]")
    if not isinstance(counts, list | str):
        raise DataError(f"{path}: {name} has no run lengths", hint="they are a list, or a text")
    return counts, (size[0], size[1])
