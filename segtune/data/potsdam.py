"""ISPRS Potsdam: aerial tiles of 6000 x 6000 pixels, whole or cut into crops.

    2_Ortho_RGB/top_potsdam_2_10_RGB.tif
    5_Labels_all_noBoundary/top_potsdam_2_10_label_noBoundary.tif
    img_dir/train/2_10_0_0_512_512.png   ann_dir/train/2_10_0_0_512_512.png   (crops)

The published tiles for testing are the test split. In masks without boundaries the border is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from segtune.data.base import DataIndex
from segtune.data.isprs import City, find_crops, read_crops, read_tiles
from segtune.data.matching import list_names, subfolders
from segtune.data.settings import DataSettings
from segtune.errors import DataError
from segtune.settings import Settings


def _tiles_of(rows: Mapping[int, Iterable[int]]) -> frozenset[str]:
    return frozenset(f"{row}_{column}" for row, columns in rows.items() for column in columns)


POTSDAM = City(
    format="potsdam",
    title="Potsdam",
    crop=re.compile(r"(\d_\d{1,2})(?:_\d+){4}"),
    train=_tiles_of({2: (10, 11, 12), 3: (10, 11, 12), 4: (10, 11, 12), 5: (10, 11, 12)})
    | _tiles_of({6: range(7, 13), 7: range(7, 13)}),
    test=_tiles_of({2: (13, 14), 3: (13, 14), 4: (13, 14, 15), 5: (13, 14, 15), 6: (13, 14, 15), 7: (13,)}),
)
_IMAGE = re.compile(r"top_potsdam_(\d_\d{1,2})_(RGB|IRRG|RGBIR)")
_MASK = re.compile(r"top_potsdam_(\d_\d{1,2})_label(_noBoundary)?")


class PotsdamSettings(Settings):
    """Which files."""

    images: Literal["RGB", "IRRG", "RGBIR"] = Field("RGB", description="which images of the whole tiles")
    boundary: Literal["auto", "with", "without"] = Field(
        "auto", description="masks with or without boundaries; auto: without, where they are there"
    )
    zero: Literal["ignored", "class"] = Field(
        "ignored", description="masks of crops: 0 is the border and 1-6 are the classes, or 0-5 are"
    )


class Potsdam:
    """The format of ISPRS Potsdam."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        images, masks = _tiles(root)
        if images and masks:
            return (
                f"{sum(map(len, images.values()))} images and {sum(map(len, masks.values()))} masks of tiles"
            )
        return find_crops(root, POTSDAM)

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Pairs tiles, or crops, with their masks.

        Raises:
            DataError: no image has a mask.
        """
        options = PotsdamSettings.model_validate(settings.options)
        images, masks = _tiles(root)
        if not images or not masks:
            return read_crops(root, POTSDAM, settings, options.zero)
        if options.images not in images:
            raise DataError(
                f"{root}: there are no {options.images} images",
                hint=f"data.options.images is one of {', '.join(images)}",
            )
        wanted = {"auto": "without" if "without" in masks else "with"}.get(options.boundary, options.boundary)
        if wanted not in masks:
            raise DataError(
                f"{root}: there are no masks {wanted} boundaries", hint="set data.options.boundary=auto"
            )
        evidence = f"{options.images} tiles, masks {wanted} boundaries"
        return read_tiles(root, POTSDAM, images[options.images], masks[wanted], settings, evidence)


def _tiles(root: Path) -> tuple[dict[str, dict[str, Path]], dict[str, dict[str, Path]]]:
    """Images by kind and tile, masks by boundary and tile."""
    images: dict[str, dict[str, Path]] = {}
    masks: dict[str, dict[str, Path]] = {}
    for folder in (root, *subfolders(root)):
        for name in list_names(folder, {".tif", ".tiff", ".png"}):
            stem = name.rpartition(".")[0]
            if found := _IMAGE.fullmatch(stem):
                images.setdefault(found.group(2), {})[found.group(1)] = folder / name
            elif found := _MASK.fullmatch(stem):
                masks.setdefault("without" if found.group(2) else "with", {})[found.group(1)] = folder / name
    return images, masks
