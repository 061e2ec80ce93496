"""What the benchmark's two cities, Potsdam and Vaihingen, have in common: classes, colours, tiles.

Source: ISPRS 2D semantic labelling benchmark, its published colours and lists of tiles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segtune.data.assemble import assemble
from segtune.data.base import Classes, Colour, DataIndex, Sample
from segtune.data.findings import number_of
from segtune.data.known import KnownCoding
from segtune.data.matching import files_by_place, match
from segtune.data.settings import DataSettings
from segtune.data.split import SPLIT_WORDS
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX

CLASSES: dict[str, Colour] = {
    "impervious surface": (255, 255, 255),
    "building": (0, 0, 255),
    "low vegetation": (0, 255, 255),
    "tree": (0, 255, 0),
    "car": (255, 255, 0),
    "clutter": (255, 0, 0),
}
BORDER: Colour = (0, 0, 0)
"""Of pixels near a boundary, in masks without boundaries."""
IMAGES, MASKS = "img_dir", "ann_dir"
"""Folders of tiles that were cut into crops."""
Zero = Literal["ignored", "class"]


@dataclass(frozen=True, kw_only=True)
class City:
    """One of the two cities."""

    format: str
    title: str
    crop: re.Pattern[str]
    """Name of a crop; its first group is the tile."""
    train: frozenset[str]
    """Tiles of the published training set."""
    test: frozenset[str]


def find_crops(root: Path, city: City) -> str | None:
    """What speaks for crops of a city's tiles, or None."""
    images, masks = files_by_place(root / IMAGES), files_by_place(root / MASKS)
    if not images or not masks:
        return None
    tiles = {_tile(city, key) for key in (*images, *masks)}
    if not tiles <= city.train | city.test:
        return None
    return f"{IMAGES}/ and {MASKS}/ hold crops of {number_of(len(tiles), 'tile')} of {city.title}"


def read_tiles(
    root: Path,
    city: City,
    images: dict[str, Path],
    masks: dict[str, Path],
    settings: DataSettings,
    evidence: str,
) -> DataIndex:
    """Reads whole tiles, whose masks are in colours; no mask is opened.

    Args:
        root: the data's folder.
        city: which.
        images: tile -> image.
        masks: tile -> mask.
        settings: with `dataset.yaml` merged in.
        evidence: what was found.

    Raises:
        DataError: no image has a mask.
    """
    keys, findings = match(root, images, masks)
    if not keys:
        raise DataError(
            f"{root}: {len(images)} tiles and {len(masks)} masks, but none of the same name",
            hint="keep the published names",
        )
    samples = [
        Sample(name=key, image=images[key], mask=masks[key], split=_split(city, key), group=key)
        for key in keys
    ]
    known = KnownCoding(
        title=f"masks of {city.title}",
        classes=Classes(names=tuple(CLASSES), palette=tuple(CLASSES.values())),
        colours={colour: label for label, colour in enumerate(CLASSES.values())} | {BORDER: IGNORE_INDEX},
    )
    return assemble(
        root,
        format=city.format,
        samples=samples,
        settings=settings,
        evidence=[evidence, "published split: tiles of the test set are test"],
        findings=findings,
        known=known,
    )


def read_crops(root: Path, city: City, settings: DataSettings, zero: Zero) -> DataIndex:
    """Reads crops, whose masks are class numbers; no mask is opened.

    Args:
        root: the data's folder.
        city: which.
        settings: with `dataset.yaml` merged in.
        zero: whether 0 is the border before the classes 1-6, or the first of the classes 0-5.

    Raises:
        DataError: no image has a mask.
    """
    images, masks = files_by_place(root / IMAGES), files_by_place(root / MASKS)
    keys, findings = match(root, images, masks)
    if not keys:
        raise DataError(f"{root}: no file of {IMAGES}/ has one of the same name in {MASKS}/")
    samples = []
    for key in keys:
        folder, _, name = key.rpartition("/")
        tile = _tile(city, key)
        split = SPLIT_WORDS.get(folder.lower()) if folder else _split(city, tile)
        samples.append(Sample(name=name, image=images[key], mask=masks[key], split=split, group=tile))
    first = 1 if zero == "ignored" else 0
    values = {label + first: label for label in range(len(CLASSES))} | {IGNORE_INDEX: IGNORE_INDEX}
    values.setdefault(0, IGNORE_INDEX)
    return assemble(
        root,
        format=city.format,
        samples=samples,
        settings=settings,
        evidence=[
            f"{len(samples)} crops; the tile is the group",
            f"{first}-{len(CLASSES) - 1 + first} are the classes"
            + (", 0 is the border, ignored" if first else ""),
        ],
        findings=findings,
        known=KnownCoding(
            title=f"masks of {city.title}",
            classes=Classes(names=tuple(CLASSES), palette=tuple(CLASSES.values())),
            values=values,
        ),
    )


def _tile(city: City, key: str) -> str:
    """The tile of a crop; empty where the name is none."""
    found = city.crop.fullmatch(key.rpartition("/")[2])
    return found.group(1) if found else ""


def _split(city: City, tile: str) -> str | None:
    if tile in city.train:
        return "train"
    return "test" if tile in city.test else None
