"""Scores of each class, and which classes count.

The policy on classes absent from the ground truth, for every score of segtune:

- in neither the masks nor the predictions of the set: not a number, left out of every mean;
- predicted, but in no mask: IoU, Dice and precision are 0 and count; recall is left out, since
  there was nothing to find;
- in the masks, but never predicted: IoU, Dice, recall and precision are 0 and count. Precision is
  0 / 0 there; leaving it out would reward silence about difficult classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from segtune.metrics.tally import Counts, Tally

ClassScores = NDArray[np.float64]
"""[K] fractions in [0, 1]; NaN where the class is left out."""


def _ratio(part: Counts, whole: Counts, counts: NDArray[np.bool_]) -> ClassScores:
    """Share of the whole: 0 where both are zero, NaN where the class does not count."""
    ratio = part / np.maximum(whole, 1)
    return np.where(counts, ratio, np.nan)


def _areas(tally: Tally) -> tuple[Counts, Counts, Counts]:
    """Pixels of each class that are right, in the masks, in the predictions."""
    return tally.confusion.diagonal(), tally.confusion.sum(axis=1), tally.confusion.sum(axis=0)


def class_iou(tally: Tally) -> ClassScores:
    """Intersection over union of each class, over the whole set."""
    right, true, predicted = _areas(tally)
    union = true + predicted - right
    return _ratio(right, union, union > 0)


def class_dice(tally: Tally) -> ClassScores:
    """Dice (F1) of each class, over the whole set."""
    right, true, predicted = _areas(tally)
    return _ratio(2 * right, true + predicted, true + predicted > 0)


def class_precision(tally: Tally) -> ClassScores:
    """Share of the pixels predicted as a class that are of that class."""
    right, true, predicted = _areas(tally)
    return _ratio(right, predicted, true + predicted > 0)


def class_recall(tally: Tally) -> ClassScores:
    """Share of the pixels of a class that are predicted as that class."""
    right, true, _ = _areas(tally)
    return _ratio(right, true, true > 0)


PER_CLASS: dict[str, Callable[[Tally], ClassScores]] = {
    "iou": class_iou,
    "dice": class_dice,
    "precision": class_precision,
    "recall": class_recall,
}


def mean_over_classes(scores: ClassScores) -> float:
    """The mean of the classes that count, NaN where there is none."""
    counted = scores[~np.isnan(scores)]
    return float(counted.mean()) if counted.size else float("nan")


def per_class(tally: Tally) -> dict[str, list[float | None]]:
    """Every score of each class.

    Args:
        tally: counts of the evaluation.

    Returns:
        "iou", "dice", "precision" and "recall", each with K fractions, None where the class is left out.
    """
    return {
        name: [None if np.isnan(score) else float(score) for score in of_classes(tally)]
        for name, of_classes in PER_CLASS.items()
    }
