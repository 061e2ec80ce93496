"""Weighted F of foreground maps: precision and recall with errors weighed by where they lie.

Errors inside the mask are shared with their neighbours, so that small holes matter less; errors outside
weigh more the further they are from the foreground, up to twice. An image without foreground is left
out: there is no recall.

Source: Margolin et al. 2014, "How to Evaluate Foreground Maps?", with beta = 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from segtune.metrics.saliency import SaliencyTally

_EPSILON = np.finfo(np.float64).eps
_SIDE, _SIGMA = 7, 5.0
"""Side of the window, in pixels, and the spread of the Gaussian in it."""
_HALF_DISTANCE = 5.0
"""Distance from the foreground, in pixels, at which an error has gained half of its additional weight."""


def weighted_f(tally: SaliencyTally) -> float:
    """Mean over the images that have a foreground."""
    return math.fsum(tally.weighted_f) / len(tally.weighted_f) if tally.weighted_f else math.nan


def weighted_f_of_image(probability: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Weighted F of one image.

    Args:
        probability: [H, W] in [0, 1].
        truth: [H, W], with at least one pixel of the foreground.

    Returns:
        A fraction in [0, 1].
    """
    from scipy.ndimage import correlate1d, distance_transform_edt

    distance, (rows, columns) = distance_transform_edt(~truth, return_indices=True)
    errors = np.abs(probability - truth)
    # outside, the error of the nearest pixel of the foreground stands in: edges are not blurred outwards
    spread = errors[rows, columns]
    kernel = np.exp(-((np.arange(_SIDE) - _SIDE // 2) ** 2) / (2 * _SIGMA**2))
    for axis in (0, 1):
        spread = correlate1d(spread, kernel / kernel.sum(), axis=axis, mode="constant")
    weighted = np.where(truth, np.minimum(errors, spread), errors * (2 - 0.5 ** (distance / _HALF_DISTANCE)))
    found = truth.sum() - weighted[truth].sum()
    recall = 1 - weighted[truth].mean()
    precision = found / (found + weighted[~truth].sum() + _EPSILON)
    return float(2 * recall * precision / (recall + precision + _EPSILON))
