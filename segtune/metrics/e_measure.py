"""E-measure of foreground maps: how pixels agree with the mask, seen against the means of both.

A map is cut at a threshold; each pixel's deviation from the mean of the cut map is compared with the
mask's, and squared. Only four kinds of pixels exist then, so that counts of a histogram are enough for
all 256 thresholds at once.

An image without foreground scores the share of background in the cut map, one that is all foreground the
share of foreground. As published, the sum over P pixels is divided by P - 1.

Source: Fan et al. 2018, "Enhanced-alignment Measure for Binary Foreground Map Evaluation".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from segtune.metrics.saliency import SaliencyTally

Map = NDArray[np.float64]
Truth = NDArray[np.bool_]
EPSILON = np.finfo(np.float64).eps


def mean_curve(tally: SaliencyTally) -> Map:
    """E-measure [256] at every threshold, averaged over images; NaN where there is none."""
    if not tally.e_curves:
        return np.full(256, np.nan)
    columns = np.stack(tally.e_curves, axis=1)
    return np.array([math.fsum(values) / len(values) for values in columns])


def e_curve(probability: Map, truth: Truth) -> Map:
    """E-measure [256] of one image at every threshold of its map in 256 steps, from high to low."""
    levels = (probability * 255).astype(np.uint8)
    inside = np.bincount(levels[truth], minlength=256)[::-1].cumsum()
    outside = np.bincount(levels[~truth], minlength=256)[::-1].cumsum()
    return _agreement(inside, outside, truth)


def e_adaptive(probability: Map, truth: Truth) -> float:
    """E-measure of one image at twice the mean of its map, at most 1."""
    cut = probability >= min(2 * probability.mean(), 1)
    inside, outside = (np.array([np.count_nonzero(cut & where)]) for where in (truth, ~truth))
    return float(_agreement(inside, outside, truth)[0])


def _agreement(inside: NDArray[np.int64], outside: NDArray[np.int64], truth: Truth) -> Map:
    """E-measure from counts.

    Args:
        inside: [T] pixels of the cut map's foreground that are in the mask.
        outside: [T] those that are not.
        truth: [H, W].

    Returns:
        [T] for T thresholds.
    """
    size, true = truth.size, int(truth.sum())
    predicted = inside + outside
    if true == 0:
        agreeing = (size - predicted).astype(np.float64)
    elif true == size:
        agreeing = predicted.astype(np.float64)
    else:
        of_map, of_mask = predicted / size, true / size
        missed = true - inside
        agreeing = np.zeros(len(inside))
        for count, x, y in (
            (inside, 1 - of_map, 1 - of_mask),
            (outside, 1 - of_map, -of_mask),
            (missed, -of_map, 1 - of_mask),
            (size - predicted - missed, -of_map, -of_mask),
        ):
            alignment = 2 * x * y / (x**2 + y**2 + EPSILON)
            agreeing += count * (alignment + 1) ** 2 / 4
    return agreeing / (size - 1 + EPSILON)
