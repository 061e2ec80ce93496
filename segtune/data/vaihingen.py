"""ISPRS Vaihingen: aerial tiles in infrared, red and green, whole or cut into crops.

    top/top_mosaic_09cm_area1.tif
    gts_for_participants/top_mosaic_09cm_area1.tif   (or ..._noBoundary.tif in a folder of eroded masks)
    img_dir/train/area1_0_0_512_512.png   ann_dir/train/area1_0_0_512_512.png   (crops)

The published tiles for testing are the test split. In masks without boundaries the border is ignored.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from segtune.data.base import DataIndex
from segtune.data.isprs import City, find_crops, read_crops, read_tiles
from segtune.data.matching import list_names, subfolders
from segtune.data.settings import DataSettings
from segtune.errors import DataError
from segtune.settings import Settings


def _areas(numbers: str) -> frozenset[str]:
    return frozenset(f"area{number}" for number in numbers.split())


VAIHINGEN = City(
    format="vaihingen",
    title="Vaihingen",
    crop=re.compile(r"(area\d{1,2})(?:_\d+){4}"),
    train=_areas("1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37"),
    test=_areas("2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38"),
)
IMAGES = "top"
_TILE = re.compile(r"top_mosaic_09cm_(area\d{1,2})(_noBoundary)?")


class VaihingenSettings(Settings):
    """Which files."""

    boundary: Literal["auto", "with", "without"] = Field(
        "auto", description="masks with or without boundaries; auto: without, where they are there"
    )
    zero: Literal["ignored", "class"] = Field(
        "ignored", description="masks of crops: 0 is the border and 1-6 are the classes, or 0-5 are"
    )


class Vaihingen:
    """The format of ISPRS Vaihingen."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        images, masks = _tiles(root)
        if images and masks:
            return f"{len(images)} images and {sum(map(len, masks.values()))} masks of tiles"
        return find_crops(root, VAIHINGEN)

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Pairs tiles, or crops, with their masks.

        Raises:
            DataError: no image has a mask.
        """
        options = VaihingenSettings.model_validate(settings.options)
        images, masks = _tiles(root)
        if not images or not masks:
            return read_crops(root, VAIHINGEN, settings, options.zero)
        wanted = {"auto": "without" if "without" in masks else "with"}.get(options.boundary, options.boundary)
        if wanted not in masks:
            raise DataError(
                f"{root}: there are no masks {wanted} boundaries", hint="set data.options.boundary=auto"
            )
        return read_tiles(root, VAIHINGEN, images, masks[wanted], settings, f"masks {wanted} boundaries")


def _tiles(root: Path) -> tuple[dict[str, Path], dict[str, dict[str, Path]]]:
    """Images by tile, masks by boundary and tile; images and masks of one name differ by their folder."""
    images: dict[str, Path] = {}
    masks: dict[str, dict[str, Path]] = {}
    for folder in (root, *subfolders(root)):
        for name in list_names(folder, {".tif", ".tiff", ".png"}):
            found = _TILE.fullmatch(name.rpartition(".")[0])
            if found is None:
                continue
            path = folder / name
            if found.group(2):
                masks.setdefault("without", {})[found.group(1)] = path
            elif folder.name.lower() == IMAGES:
                images[found.group(1)] = path
            elif folder != root:
                masks.setdefault("with", {})[found.group(1)] = path
    return images, masks
