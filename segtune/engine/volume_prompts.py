"""Prompts of the slices of volumes: from a user's file, or drawn from masks as they are for scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from segtune.data.base import Classes, Sample
from segtune.data.prompts import PromptSource
from segtune.data.volumes.nifti import SUFFIXES
from segtune.data.volumes.places import Places
from segtune.data.volumes.reader import VolumeReader
from segtune.engine.prompts import ObjectPrompt, pack_objects, read_objects
from segtune.errors import UsageError
from segtune.types import Prompts

FORMAT = '{"case": [{"class": "name", "slice": 72, "box": [i1, j1, i2, j2], "points": [[i, j]]}]}'
"""A file of prompts, in short."""

PromptsOf = Callable[[Sample], Prompts]
"""The prompts of a slice image (B = 1)."""

_Index = Annotated[int, Field(ge=0)]


class SlicePrompt(ObjectPrompt):
    """One object of one slice or of several, in voxels of the volume's file, counted from 0.

    `slice` counts along the axis of the file that slices are cut across; a box or a point holds the
    indices along the other two axes, in the file's order.
    """

    slice: _Index | tuple[_Index, _Index]
    """One slice, or the first and the last of several."""


def from_masks(source: PromptSource, reader: VolumeReader) -> PromptsOf:
    """Prompts of slices whose cases have masks; nothing random, as for scores."""
    return lambda sample: source.exact(torch.from_numpy(np.ascontiguousarray(reader.mask(sample))))


def from_file(path: Path, reader: VolumeReader, classes: Classes, kinds: frozenset[str]) -> PromptsOf:
    """Prompts that a file gives for every case.

    Args:
        path: JSON, see `FORMAT`; a case may be named with the ending of its file.
        reader: of the cases.
        classes: of the model.
        kinds: "box" and "point", or one of them: what the model needs.

    Returns:
        What gives the prompts of each slice; one that the file does not name has no object.

    Raises:
        UsageError: the file cannot be read, an object lacks something or lies beyond its volume, or a
            case is not named.
    """
    entries = read_objects(path, SlicePrompt, classes, kinds, FORMAT)
    named = {_without_ending(name): (name, objects) for name, objects in entries.items()}
    missing = [name for name in reader.cases if name not in named]
    if missing:
        raise UsageError(
            f"{path} has no prompts for {len(missing)} of {len(reader.cases)} volumes, the first is"
            f" {missing[0]}",
            hint="name each volume; one without any object gets an empty list: []",
        )
    objects = {}
    for case in reader.cases:
        key, own = named[case]
        objects[case] = _by_slice(own, f"{path}: {key}", reader, case)
    return lambda sample: pack_objects(_of_sample(objects, sample), kinds)


def _of_sample(
    objects: Mapping[str, Mapping[int, list[tuple[int, ObjectPrompt]]]], sample: Sample
) -> list[tuple[int, ObjectPrompt]]:
    assert sample.slice is not None, f"{sample.name} is no slice"
    return objects[sample.slice.case].get(sample.slice.position, [])


def _by_slice(
    objects: Iterable[tuple[int, SlicePrompt]], where: str, reader: VolumeReader, case: str
) -> dict[int, list[tuple[int, ObjectPrompt]]]:
    """Objects in pixels of the slice images that they lie in, by position."""
    places, offset = reader.places(case), reader.offset(case)
    size = places.shape[1:] if reader.recipe.crop is None else reader.recipe.crop
    assert size != "brain", "the crop is settled before a slice is read"
    found: dict[int, list[tuple[int, ObjectPrompt]]] = defaultdict(list)
    for number, (label, entry) in enumerate(objects):
        first, last = entry.slice if isinstance(entry.slice, tuple) else (entry.slice, entry.slice)
        if first > last or last >= places.shape[0]:
            raise UsageError(
                f"{where} / {number}: slices {first} to {last} of {places.shape[0]}",
                hint=f"slices count from 0 to {places.shape[0] - 1} along axis {places.axes[0]} of the file",
            )
        _require_inside(entry, f"{where} / {number}", places)
        moved = _in_pixels(entry, places, offset, (size[0], size[1]))
        if moved is not None:
            for index in range(first, last + 1):
                found[places.position(index)].append((label, moved))
    return found


def _require_inside(entry: SlicePrompt, where: str, places: Places) -> None:
    """Refuses indices that the file does not have: they were meant for another axis or volume."""
    ends = places.sides
    box = entry.box or (0, 0, 0, 0)
    pairs = [(box[0], box[1]), (box[2], box[3]), *(entry.points or [])]
    for pair in pairs:
        if any(not 0 <= value < end for value, end in zip(pair, ends, strict=True)):
            raise UsageError(
                f"{where}: {list(pair)} lies beyond the {ends[0]} x {ends[1]} voxels of a slice",
                hint="boxes and points are voxel indices of the file, from 0, in the order of its axes",
            )


def _in_pixels(
    entry: SlicePrompt, places: Places, offset: tuple[int, int], size: tuple[int, int]
) -> ObjectPrompt | None:
    """The object in pixels of slice images, or None where the crop shows nothing of it."""
    height, width = size

    def moved(first: float, second: float) -> tuple[float, float]:
        column, row = places.point(first, second)
        return column - offset[1], row - offset[0]

    box, points, labels = None, None, None
    if entry.box is not None:
        ends = (moved(*entry.box[:2]), moved(*entry.box[2:]))
        (left, right), (top, bottom) = (sorted(values) for values in zip(*ends, strict=True))
        if right < 0 or bottom < 0 or left > width - 1 or top > height - 1:
            return None
        box = (max(left, 0.0), max(top, 0.0), min(right, width - 1.0), min(bottom, height - 1.0))
    if entry.points is not None:
        given = entry.labels or [1] * len(entry.points)
        inside = [
            (point, label)
            for point, label in zip((moved(*pair) for pair in entry.points), given, strict=True)
            if 0 <= point[0] <= width - 1 and 0 <= point[1] <= height - 1
        ]
        if not inside:
            return None
        points, labels = [point for point, _ in inside], [label for _, label in inside]
    return ObjectPrompt(box=box, points=points, labels=labels)


def _without_ending(name: str) -> str:
    return next((name[: -len(end)] for end in SUFFIXES if name.lower().endswith(end)), name)
