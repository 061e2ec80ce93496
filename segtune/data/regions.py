"""Parts of an image given by polygons or run lengths, as pixels.

A pixel belongs to a polygon where its centre lies inside. Coordinates count from the upper left corner of
the image, so the centre of the first pixel is at (0.5, 0.5). Where a polygon crosses itself, parts that are
covered twice are outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segtune.errors import DataError

Points = NDArray[np.float64]
"""[N, 2], x and y in pixels."""
FARTHEST = 1e7
"""Coordinates beyond this, in pixels, are no positions in an image."""
CELLS = 4_000_000
"""Edges times rows that are worked on at once."""


class Region(NamedTuple):
    """Pixels of a part of an image."""

    top: int
    left: int
    inside: NDArray[np.bool_]
    """[h, w], from the pixel (top, left) on."""

    def paint(self, mask: NDArray[Any], label: int) -> None:
        """Sets the pixels in a map [H, W]."""
        height, width = self.inside.shape
        mask[self.top : self.top + height, self.left : self.left + width][self.inside] = label


def read_points(where: str, values: Any) -> Points:
    """Points of numbers x, y, x, y, ..., or of pairs.

    Raises:
        DataError: these are no positions in an image.
    """
    try:
        points = np.asarray(values, np.float64)
        points = points.ravel() if points.ndim == 1 or points.shape[1:] == (2,) else np.full(1, np.nan)
    except (TypeError, ValueError, OverflowError):
        points = np.full(1, np.nan)
    if points.size % 2 or not np.isfinite(points).all() or np.abs(points).max(initial=0) > FARTHEST:
        shown = str(values)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        raise DataError(
            f"{where} has a shape that is no list of positions: {shown}",
            hint="positions are x, y, x, y, ... in pixels",
        )
    return points.reshape(-1, 2)


def polygon_region(points: Points, height: int, width: int) -> Region:
    """The pixels of a polygon.

    Args:
        points: [N, 2], x and y in pixels, N >= 3; the last is joined to the first.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        The pixels inside of the image; none where the polygon lies outside of it.
    """
    low = np.clip(np.floor(points.min(axis=0)), 0, (width, height)).astype(np.int64)
    high = np.clip(np.ceil(points.max(axis=0)), 0, (width, height)).astype(np.int64)
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    if right <= left or bottom <= top:
        return Region(0, 0, np.zeros((0, 0), np.bool_))
    # A pixel is inside where the number of edges to the left of its centre is odd.
    toggles = np.zeros((bottom - top, right - left + 1), np.int32)
    centres = np.arange(top, bottom) + 0.5
    ends = np.roll(points, -1, axis=0)
    step = max(1, CELLS // len(centres))
    for first in range(0, len(points), step):
        x0, y0 = points[first : first + step].T[:, :, None]
        x1, y1 = ends[first : first + step].T[:, :, None]
        edges, rows = np.nonzero((y0 <= centres) != (y1 <= centres))
        width_each, height_each = (x1 - x0)[edges, 0], (y1 - y0)[edges, 0]
        crossings = x0[edges, 0] + (centres[rows] - y0[edges, 0]) * width_each / height_each
        columns = np.clip(np.ceil(crossings - 0.5), left, right).astype(np.int64) - left
        np.add.at(toggles, (rows, columns), 1)
    return Region(top, left, np.cumsum(toggles[:, :-1], axis=1) % 2 == 1)


def union(regions: Sequence[Region]) -> Region:
    """The pixels that any of the regions has.

    Args:
        regions: at least one.
    """
    regions = [region for region in regions if region.inside.size] or list(regions[:1])
    if len(regions) == 1:
        return regions[0]
    top, left = min(region.top for region in regions), min(region.left for region in regions)
    bottom = max(region.top + region.inside.shape[0] for region in regions)
    right = max(region.left + region.inside.shape[1] for region in regions)
    inside = np.zeros((bottom - top, right - left), np.bool_)
    for region in regions:
        height, width = region.inside.shape
        y, x = region.top - top, region.left - left
        inside[y : y + height, x : x + width] |= region.inside
    return Region(top, left, inside)


def decode_counts(text: str) -> list[int]:
    """The run lengths of COCO's compressed form: groups of 5 bits, from the third on as differences.

    Raises:
        ValueError: the text is no such form.
    """
    counts: list[int] = []
    number, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"the run lengths hold the character {character!r}")
        number |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number, shift = 0, 0
    if shift:
        raise ValueError("the last run is cut off")
    return counts


def runs_region(counts: Sequence[int], height: int, width: int) -> Region:
    """The pixels of run lengths, column by column, outside and inside by turns.

    Raises:
        ValueError: the runs are no whole numbers, or do not add up to the image's pixels.
    """
    if any(type(count) is not int or not 0 <= count <= height * width for count in counts):
        raise ValueError("a run is no number of pixels of the image")
    if sum(counts) != height * width:
        raise ValueError(f"the runs add up to {sum(counts)} pixels, the image has {height * width}")
    turns = np.arange(len(counts)) % 2 == 1
    return Region(0, 0, np.repeat(turns, counts).reshape(width, height).T)
