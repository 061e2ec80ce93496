"""S-measure of foreground maps: likeness in structure, of foreground and background and of four regions.

Half of it compares mean and spread of the map inside the mask and outside; half compares map and mask in
the four rectangles that meet at the mask's centre. An image without foreground scores one minus the
map's mean, one that is all foreground the map's mean.

Source: Fan et al. 2017, "Structure-measure: A New Way to Evaluate Foreground Maps", with alpha = 0.5.
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


def s_measure(tally: SaliencyTally) -> float:
    """Mean over the images."""
    return math.fsum(tally.s) / len(tally.s) if tally.s else math.nan


def s_of_image(probability: Map, truth: Truth) -> float:
    """S-measure of one image.

    Args:
        probability: [H, W] in [0, 1].
        truth: [H, W].

    Returns:
        A fraction in [0, 1].
    """
    share = truth.mean()
    if share == 0:
        return float(1 - probability.mean())
    if share == 1:
        return float(probability.mean())
    objects = share * _object(probability[truth]) + (1 - share) * _object(1 - probability[~truth])
    return float(max(0.0, (objects + _regions(probability, truth)) / 2))


def _object(values: Map) -> float:
    """How high and how even the map is where it should be 1; values [P]."""
    mean = values.mean()
    spread = values.std(ddof=1) if values.size > 1 else 0.0
    return float(2 * mean / (mean**2 + 1 + spread + EPSILON))


def _regions(probability: Map, truth: Truth) -> float:
    """Likeness in the four rectangles around the mask's centre, weighted by their areas."""
    rows, columns = np.nonzero(truth)
    row, column = round(rows.mean()) + 1, round(columns.mean()) + 1
    total = 0.0
    for vertical in (slice(None, row), slice(row, None)):
        for horizontal in (slice(None, column), slice(column, None)):
            part = truth[vertical, horizontal]
            if part.size:
                total += part.size * _likeness(probability[vertical, horizontal], part.astype(np.float64))
    return total / truth.size


def _likeness(x: Map, y: Map) -> float:
    """Structural similarity of two maps: of their means, spreads and course."""
    mean_x, mean_y = x.mean(), y.mean()
    around_x, around_y = x - mean_x, y - mean_y
    freedom = x.size - 1 + EPSILON
    spreads = ((around_x**2).sum() + (around_y**2).sum()) / freedom
    alike = 4 * mean_x * mean_y * (around_x * around_y).sum() / freedom
    most = (mean_x**2 + mean_y**2) * spreads
    if alike != 0:
        return float(alike / (most + EPSILON))
    return 1.0 if most == 0 else 0.0
