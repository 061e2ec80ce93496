"""Dice of class 1 of two, averaged over images.

An image that has the foreground neither in its mask nor in its prediction is left out.
"""

from __future__ import annotations

import math

from segtune.metrics.foreground_iou_per_image import foreground_areas, mean_over_images
from segtune.metrics.tally import Tally


def foreground_dice_per_image(tally: Tally) -> float:
    """Mean over the images of the foreground's Dice; NaN unless there are exactly two classes."""
    if tally.num_classes != 2:
        return math.nan
    intersection, union = foreground_areas(tally)
    return mean_over_images(2 * intersection / (union + intersection))
