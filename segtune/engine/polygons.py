"""The areas of a mask's classes as polygons, in a GeoPackage."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from segtune.data.base import Classes
from segtune.data.raster import import_rasterio, open_raster
from segtune.errors import MissingExtraError

CHUNK = 20_000
"""Polygons that are written at once."""

Ring = Sequence[tuple[float, float]]


def import_pyogrio() -> Any:
    """The package pyogrio.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyogrio
    except ImportError:
        raise MissingExtraError("pyogrio", extra="geo", purpose="writing polygons") from None
    return pyogrio


def write_polygons(mask: Path, target: Path, classes: Classes) -> None:
    """Writes each connected area (by edges) of each class as a polygon.

    Its fields are `class` (the name), `pixels`, and `area_m2`, which is empty where the coordinates are no
    lengths.

    Args:
        mask: GeoTIFF of classes; what is nodata gets no polygon.
        target: of the file.
        classes: of the mask.
    """
    pyogrio, rasterio = import_pyogrio(), import_rasterio()
    from rasterio.features import shapes

    with open_raster(mask) as file:
        crs = file.crs
        metres = crs.linear_units_factor[1] if crs is not None and crs.is_projected else None
        pixel = abs(file.transform.determinant)
        band = rasterio.band(file, 1)
        found: Iterator[tuple[dict[str, Any], float]] = (
            shape for shape in shapes(band, transform=file.transform) if shape[1] < classes.num_classes
        )
        is_first = True
        while (chunk := list(islice(found, CHUNK))) or is_first:
            rings = [shape["coordinates"] for shape, _ in chunk]
            areas = np.array([area(r) for r in rings], np.float64)
            pyogrio.raw.write(
                target,
                geometry=np.array([well_known_binary(r) for r in rings], object),
                field_data=[
                    np.array([classes.names[int(label)] for _, label in chunk], object),
                    np.rint(areas / pixel).astype(np.int64),
                    areas * metres**2 if metres is not None else np.full(len(areas), np.nan),
                ],
                fields=np.array(["class", "pixels", "area_m2"], object),
                crs=None if crs is None else crs.to_wkt(),
                geometry_type="Polygon",
                driver="GPKG",
                layer=mask.stem,
                append=not is_first,
            )
            is_first = False


def area(rings: Sequence[Ring]) -> float:
    """The area of a polygon without its holes, in squared units of its coordinates."""

    def enclosed(ring: Ring) -> float:
        # Coordinates of maps are large; differences to the first corner keep the digits.
        x, y = (np.asarray(ring, np.float64) - np.asarray(ring[0], np.float64)).T
        return abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2

    return enclosed(rings[0]) - sum(enclosed(ring) for ring in rings[1:])


def well_known_binary(rings: Sequence[Ring]) -> bytes:
    """A polygon of an outer ring and holes in the form that GDAL takes."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts.append(struct.pack("<I", len(ring)))
        parts.append(np.asarray(ring, "<f8").tobytes())
    return b"".join(parts)
