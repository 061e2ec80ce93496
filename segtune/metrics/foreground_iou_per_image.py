"""IoU of class 1 of two, averaged over images: the Jaccard index of papers on skin lesions.

An image that has the foreground neither in its mask nor in its prediction is left out.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from segtune.metrics.tally import Counts, Tally


def foreground_areas(tally: Tally) -> tuple[Counts, Counts]:
    """Intersection and union of each image with the foreground in its mask or prediction."""
    assert tally.num_classes == 2
    union = tally.unions[:, 1]
    return tally.intersections[union > 0, 1], union[union > 0]


def mean_over_images(scores: NDArray[np.float64]) -> float:
    """The mean, rounded once, so that the order of the images does not show; NaN where there is none."""
    return math.fsum(scores) / len(scores) if len(scores) else math.nan


def foreground_iou_per_image(tally: Tally) -> float:
    """Mean over the images of the foreground's IoU; NaN unless there are exactly two classes."""
    if tally.num_classes != 2:
        return math.nan
    intersection, union = foreground_areas(tally)
    return mean_over_images(intersection / union)
