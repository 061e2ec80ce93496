"""Georeferenced or very large TIFF images with masks, cut into tiles while they are read.

Images and masks lie as in `folder`: in folders called so, or side by side with a part of the name that
tells them apart. A mask has the same coordinates as its image. Each tile is a sample, and the raster its
group, so that tiles of one raster never fall into different splits. What is nodata in the image or in the
mask is ignored. Needs the package `rasterio`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from segtune.data.assemble import OUTSIDE_CODE, assemble
from segtune.data.base import DataIndex, Finding, Image, Mask, Origin, Sample, Severity
from segtune.data.channels import ChannelRule, channel_rule
from segtune.data.files import MaskFile, map_threads
from segtune.data.findings import file_finding
from segtune.data.folder import Folder, paired_samples
from segtune.data.mask_values import mask_values
from segtune.data.masks import FileReader, MaskCoding, outside_error
from segtune.data.raster import (
    TIFF,
    Window,
    can_be_empty,
    import_rasterio,
    is_raster,
    num_channels,
    open_raster,
    read_window,
    valid_pixels,
)
from segtune.data.settings import DataSettings
from segtune.errors import DataError
from segtune.settings import Settings
from segtune.types import IGNORE_INDEX

SHIFT = 0.01
"""Pixels by which the corners of a mask may lie away from those of its image."""


class GeoTiffSettings(Settings):
    """How rasters are cut."""

    tile: int = Field(512, ge=16, le=8192, description="largest height and width of a tile, in pixels")
    mask_nodata: Literal["ignore", "class"] = Field(
        "ignore", description="whether a mask's nodata value is ignored, or a class like any other"
    )


class GeoTiff:
    """The format of georeferenced rasters."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        if not root.is_dir() or not _holds_tiff(root) or Folder().detect(root) is None:
            return None
        try:
            samples, _, _ = paired_samples(root)
        except DataError:
            return None
        first = samples[0]
        kinds = {path.suffix.lower() for s in samples for path in (s.image, s.mask) if path is not None}
        if kinds - TIFF or not is_raster(first.image):
            return None
        return f"{len(samples)} TIFF images with masks; {first.image.name} has coordinates or is very large"

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Pairs images with masks, lists the tiles that hold anything and finds out how masks are coded.

        Raises:
            MissingExtraError: rasterio is not installed.
            DataError: no image has a mask, a mask lies elsewhere than its image, or nothing is left.
        """
        import_rasterio()
        options = GeoTiffSettings.model_validate(settings.options)
        pairs, evidence, findings = paired_samples(root)
        tiles = Tiles(size=options.tile, mask_nodata=options.mask_nodata == "ignore")
        placeless = [_check_place(pair) for pair in pairs]
        findings += file_finding(
            Severity.WARNING,
            "mask-without-coordinates",
            "masks have no coordinates; they are taken to lie where their images lie",
            root,
            [pair.mask for pair, without in zip(pairs, placeless, strict=True) if without and pair.mask],
            "save them with the coordinates of the images",
        )
        listed = map_threads(tiles.samples, pairs)
        samples = [sample for own, _ in listed for sample in own]
        empty = sum(count for _, count in listed)
        if not samples:
            raise DataError(f"{root}: the rasters hold nothing but nodata", hint="check their nodata values")
        size = f"{options.tile} x {options.tile}"
        evidence.append(
            f"{len(samples)} tiles of at most {size} pixels of {len(pairs)} rasters"
            + (f"; {empty} that hold nothing are left out" if empty else "")
        )
        if len(pairs) < 3 and not any(pair.split for pair in pairs):
            findings.append(_too_few(len(pairs)))
        index = assemble(
            root,
            format="geotiff",
            samples=samples,
            settings=settings,
            evidence=evidence,
            findings=findings,
            read=tiles.stored_mask,
        )
        assert isinstance(index.reader, FileReader)
        rule = channel_rule(settings)
        with open_raster(pairs[0].image) as raster:
            number = rule.num_channels(num_channels(raster))
        reader = TileReader(
            tiles=tiles,
            coding=index.reader.coding,
            tolerant=OUTSIDE_CODE in settings.allow,
            rule=replace(rule, expected=number),
        )
        said = () if number == 3 else (f"images have {number} channels",)
        return replace(index, reader=reader, channels=number, evidence=(*index.evidence, *said))


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Parts of rasters by the path that stands for each: raster / row_column of the tile."""

    size: int
    """Largest height and width, in pixels."""
    mask_nodata: bool
    """Whether a mask's nodata value is ignored."""

    def samples(self, pair: Sample) -> tuple[list[Sample], int]:
        """The tiles of an image and its mask that hold anything, and the number of the others."""
        assert pair.mask is not None
        kept, empty = [], 0
        with open_raster(pair.image) as image, open_raster(pair.mask) as mask:
            look = can_be_empty(image) or (self.mask_nodata and can_be_empty(mask))
            for row in range(-(-image.height // self.size)):
                for column in range(-(-image.width // self.size)):
                    window = self._window(image, row, column)
                    if look:
                        valid = valid_pixels(image, window)
                        if self.mask_nodata:
                            valid &= valid_pixels(mask, window)
                        if not valid.any():
                            empty += 1
                            continue
                    name = f"{row:03d}_{column:03d}"
                    kept.append(
                        replace(
                            pair,
                            name=f"{pair.name}/{name}",
                            image=pair.image / name,
                            mask=pair.mask / name,
                            group=pair.name,
                        )
                    )
        return kept, empty

    def image(self, path: Path, rule: ChannelRule) -> tuple[Image, Any]:
        """The image [h, w, C] of a tile, and [h, w] whether a pixel holds anything."""
        with open_raster(path.parent) as raster:
            return read_window(raster, self._named(raster, path), rule, path)

    def mask(self, path: Path) -> tuple[MaskFile, Any]:
        """What the mask of a tile stores, and [h, w] whether a pixel holds anything.

        Pixels that hold nothing repeat another value of the tile, so that they add none to those found.
        """
        with open_raster(path.parent) as raster:
            window = self._named(raster, path)
            place = ((window.top, window.top + window.height), (window.left, window.left + window.width))
            array = raster.read(window=place)
            valid = np.ones(array.shape[1:], np.bool_)
            if self.mask_nodata:
                valid = valid_pixels(raster, window)
            values = np.moveaxis(array, 0, -1)
            values = values[..., 0] if values.shape[-1] == 1 else values
            values[~valid] = values[valid][0] if valid.any() else 0
            palette = None
            if raster.count == 1 and raster.colorinterp[0].name == "palette":
                colours = raster.colormap(1)
                palette = tuple(tuple(colours[k][:3]) for k in range(256) if k in colours)
        return MaskFile(values=mask_values(values, path), palette=palette, lossy=False), valid

    def stored_mask(self, path: Path) -> MaskFile:
        """What the mask of a tile stores."""
        return self.mask(path)[0]

    def _named(self, raster: Any, path: Path) -> Window:
        row, column = map(int, path.name.split("_"))
        return self._window(raster, row, column)

    def _window(self, raster: Any, row: int, column: int) -> Window:
        """A tile; all of a raster are as good as equally large, so that none is a sliver."""
        top, bottom = _edges(raster.height, self.size, row)
        left, right = _edges(raster.width, self.size, column)
        return Window(top, left, bottom - top, right - left)


def _edges(length: int, size: int, number: int) -> tuple[int, int]:
    count = -(-length // size)
    return length * number // count, length * (number + 1) // count


@dataclass(frozen=True, kw_only=True)
class TileReader:
    """Reads the tiles of rasters."""

    tiles: Tiles
    coding: MaskCoding
    tolerant: bool
    """Whether mask values that mean no class are ignored instead of refused."""
    rule: ChannelRule

    def origin(self, sample: Sample) -> Origin | None:
        """The two rasters, the tile's place in them, and how they are read."""
        if sample.mask is None:
            return None
        rest = f"tile {sample.image.name} {self.tiles} {self.rule} {self.coding} {self.tolerant}"
        return Origin((sample.image.parent, sample.mask.parent), rest)

    def image(self, sample: Sample) -> Image:
        """[H, W, C]."""
        return self.tiles.image(sample.image, self.rule)[0]

    def mask(self, sample: Sample) -> Mask:
        """[H, W] class map; what holds nothing in the image or the mask is ignored.

        Raises:
            DataError: it cannot be read, or holds values that mean no class.
        """
        assert sample.mask is not None, f"{sample.name} has no mask"
        stored, valid = self.tiles.mask(sample.mask)
        mask, outside = self.coding.decode(stored)
        if outside and not self.tolerant:
            raise outside_error(sample.mask, outside)
        mask[~(valid & self.tiles.image(sample.image, self.rule)[1])] = IGNORE_INDEX
        return mask


def _holds_tiff(root: Path) -> bool:
    def endings() -> Iterator[str]:
        for _, _, names in os.walk(root):
            yield from (os.path.splitext(name)[1].lower() for name in names)  # noqa: PTH122

    return any(ending in TIFF for ending in endings())


def _check_place(pair: Sample) -> bool:
    """Whether a mask has no coordinates while its image has.

    Raises:
        DataError: the mask lies elsewhere than its image, or has another size.
    """
    assert pair.mask is not None
    with open_raster(pair.image) as image, open_raster(pair.mask) as mask:
        placeless = mask.crs is None and mask.transform.is_identity
        pixel = max(abs(number) for number in (image.transform.a, image.transform.b, image.transform.d))
        apart = max(abs(one - other) for one, other in zip(_corners(image), _corners(mask), strict=True))
        same = image.crs == mask.crs and apart <= SHIFT * pixel
        if image.shape != mask.shape or not (same or placeless):
            raise DataError(
                f"{pair.mask} does not lie where its image {pair.image.name} lies:\n"
                f"  image: {_place(image)}\n  mask:  {_place(mask)}",
                hint="bring the mask to the grid of the image, e.g. with gdalwarp -r near",
            )
        return placeless and not (image.crs is None and image.transform.is_identity)


def _corners(raster: Any) -> list[float]:
    """Coordinates of three corners of a raster."""
    a, b, c, d, e, f = tuple(raster.transform)[:6]
    corners = ((0, 0), (raster.width, 0), (0, raster.height))
    return [value for x, y in corners for value in (a * x + b * y + c, d * x + e * y + f)]


def _place(raster: Any) -> str:
    numbers = ", ".join(f"{number:.10g}" for number in tuple(raster.transform)[:6])
    crs = "no CRS" if raster.crs is None else raster.crs.to_string()
    return f"{crs}, transform ({numbers}), {raster.width} x {raster.height} pixels"


def _too_few(count: int) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        code="few-rasters",
        message=f"the tiles of a raster stay in one split, and there are only {count}",
        hint=r"--set 'data.group=(.+)' divides by tiles: neighbours are alike, so scores look too good",
    )
