"""Finds images that are almost the same picture, by a difference hash and a closer look.

The hash says for 64 pairs of neighbouring cells which one is brighter; images whose hashes are close
are compared by the mean difference of their thumbnails, since hashes of similar scenes may agree by chance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

HASH_DISTANCE = 10
"""Hashes that differ in more of their 64 bits are different pictures."""
MEAN_DIFFERENCE = 8.0
"""Thumbnails whose grey values (0..255) differ by more on average are different pictures."""
RELATIVE_DIFFERENCE = 0.3
"""The same, as a share of the thumbnails' own contrast, for pale or dark images."""
FLAT = 2.0
"""Images with less contrast (standard deviation of grey values) are blank and not compared."""


def difference_hash(thumbnail: NDArray[np.uint8]) -> int:
    """64 bits that say which of two neighbouring cells of a 9 x 8 picture is brighter."""
    small = np.asarray(Pillow.fromarray(thumbnail).resize((9, 8), Pillow.Resampling.BOX))
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def near_duplicates(
    first: NDArray[np.uint8], second: NDArray[np.uint8], *, chunk: int = 512
) -> list[tuple[int, int]]:
    """Pairs of almost equal pictures of two sets.

    Args:
        first: thumbnails [N, 32, 32], grey.
        second: thumbnails [M, 32, 32], grey.
        chunk: rows of the N x M comparison that are held in memory at once.

    Returns:
        Indices (n, m), sorted; for each n the most similar m only.
    """
    hashes = [
        np.array([difference_hash(thumbnail) for thumbnail in thumbnails], np.uint64)
        for thumbnails in (first, second)
    ]
    pixels = [thumbnails.reshape(len(thumbnails), -1).astype(np.int16) for thumbnails in (first, second)]
    contrast = [rows.std(axis=1) for rows in pixels]
    pairs = []
    for start in range(0, len(first), chunk):
        rows = hashes[0][start : start + chunk]
        close = np.bitwise_count(rows[:, None] ^ hashes[1][None, :]) <= HASH_DISTANCE
        for row in np.flatnonzero(close.any(axis=1)):
            n = start + int(row)
            candidates = np.flatnonzero(close[row])
            difference = np.abs(pixels[1][candidates] - pixels[0][n]).mean(axis=1)
            own = np.minimum(contrast[1][candidates], contrast[0][n])
            limit = np.where(own < FLAT, -1.0, np.minimum(MEAN_DIFFERENCE, RELATIVE_DIFFERENCE * own))
            best = int(np.argmin(difference - limit))
            if difference[best] <= limit[best]:
                pairs.append((n, int(candidates[best])))
    return pairs
