"""Thresholded Jaccard of two classes: IoU of the foreground averaged over images, below 0.65 counted as 0.

An image that has the foreground neither in its mask nor in its prediction is left out.

Source: Codella et al. 2019, "Skin Lesion Analysis Toward Melanoma Detection 2018", section 2.
"""

from __future__ import annotations

import math

import numpy as np

from segtune.metrics.foreground_iou_per_image import foreground_areas, mean_over_images
from segtune.metrics.tally import Tally

THRESHOLD = 0.65


def thresholded_jaccard(tally: Tally) -> float:
    """Mean over the images of IoU or 0; NaN unless there are exactly two classes."""
    if tally.num_classes != 2:
        return math.nan
    intersection, union = foreground_areas(tally)
    iou = intersection / union
    return mean_over_images(np.where(iou >= THRESHOLD, iou, 0.0))
