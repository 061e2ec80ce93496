"""Georeferenced and very large TIFF files, read in windows with rasterio (the extra `geo`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtune.data.base import Image
from segtune.data.channels import ChannelRule
from segtune.errors import DataError, MissingExtraError

TIFF = frozenset({".tif", ".tiff"})
WHOLE_PIXELS = 100_000_000
"""Images of more pixels than this are not taken whole."""
CACHE = 64
"""MiB of decoded blocks that are kept for each process; rasterio would take a share of all memory."""
GEO_TAGS = frozenset({33550, 33922, 34264, 34735})
"""Pixel scale, tie points, transformation and projection of a GeoTIFF."""


@dataclass(frozen=True)
class Window:
    """A part of a raster, in pixels."""

    top: int
    left: int
    height: int
    width: int


def is_raster(path: Path) -> bool:
    """Whether a file is a TIFF with georeferencing, or one too large to be taken whole."""
    if path.suffix.lower() not in TIFF:
        return False
    from tifffile import TiffFile

    try:
        with TiffFile(path) as file:
            page: Any = file.pages.first
            large = page.imagewidth * page.imagelength > WHOLE_PIXELS
            return large or any(int(tag.code) in GEO_TAGS for tag in page.tags)
    except Exception:  # the reader raises anything on foreign bytes
        return False


def import_rasterio(purpose: str = "reading GeoTIFF files") -> Any:
    """The package rasterio.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import rasterio
    except ImportError:
        raise MissingExtraError("rasterio", extra="geo", purpose=purpose) from None
    return rasterio


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warning of rasters that lie nowhere: very large images may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", import_rasterio().errors.NotGeoreferencedWarning)
        yield


@contextmanager
def open_raster(path: Path) -> Iterator[Any]:
    """A raster, open for reading.

    Raises:
        MissingExtraError: rasterio is not installed.
        DataError: the file cannot be opened, or a part of it cannot be read.
    """
    rasterio = import_rasterio()
    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        try:
            with quiet():
                file = rasterio.open(path, driver="GTiff")
            with file:
                yield file
        except rasterio.errors.RasterioError as error:
            raise DataError(
                f"{path}: the raster cannot be read: {' '.join(str(error).split())[:200]}",
                hint="the file may be truncated: copy it again, or remove it",
            ) from None


def num_channels(raster: Any) -> int:
    """How many channels a raster stores; a palette counts as colours."""
    return 3 if _palette(raster) is not None else int(raster.count)


def read_window(
    raster: Any, window: Window, rule: ChannelRule, path: Path, size: tuple[int, int] | None = None
) -> tuple[Image, NDArray[np.bool_]]:
    """A window of a raster.

    Args:
        raster: open.
        window: within the raster.
        rule: which channels.
        path: for messages.
        size: height and width that the window is thinned out to, or None.

    Returns:
        The image [h, w, C], and [h, w] whether a pixel holds anything. Pixels without are black.

    Raises:
        DataError: other channels or values than an image's.
    """
    shape = None if size is None else (raster.count, *size)
    array = np.moveaxis(raster.read(window=_place(window), out_shape=shape), 0, -1)
    valid = valid_pixels(raster, window, size)
    if array.dtype.kind == "f":
        valid &= np.isfinite(array).all(axis=-1)
    palette = _palette(raster)
    if palette is not None:
        array = palette[array[..., 0]]
    array[~valid] = 0 if rule.value_range is None else rule.value_range[0]
    return rule.apply(array, path), valid


def valid_pixels(raster: Any, window: Window, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """[h, w] whether a pixel is neither the nodata value in all channels, nor masked, nor transparent."""
    valid: NDArray[np.bool_] = raster.dataset_mask(window=_place(window), out_shape=size) > 0
    return valid


def can_be_empty(raster: Any) -> bool:
    """Whether a raster has a nodata value, a mask or an alpha channel."""
    rasterio = import_rasterio()
    return any(rasterio.enums.MaskFlags.all_valid not in flags for flags in raster.mask_flag_enums)


def _place(window: Window) -> Any:
    from rasterio.windows import Window as Place

    return Place(window.left, window.top, window.width, window.height)


def _palette(raster: Any) -> NDArray[np.uint8] | None:
    rasterio = import_rasterio()
    if raster.colorinterp[0] is not rasterio.enums.ColorInterp.palette or raster.dtypes[0] != "uint8":
        return None
    table = np.zeros((256, 3), np.uint8)
    for index, colour in raster.colormap(1).items():
        table[index] = colour[:3]
    return table
