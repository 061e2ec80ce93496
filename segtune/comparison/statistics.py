"""Scores from the counts of images, their intervals, and whether two rows can be told apart.

Everything is a bootstrap over the images of the test split, or over its volumes: they, or whole groups,
are drawn with replacement, and the score of the drawn set is computed as that of the real one. Two rows
are compared on the same draws, which is what makes the test a paired one: an image that is difficult for
both adds nothing to their difference. Where there are several seeds, the comparison draws seeds too, each
row its own, since a difference smaller than that between two seeds says nothing about methods.

Source
    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 (percentile interval) and 8
    (data of more than one level).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segtune.engine.case_values import CaseValues, Floats
from segtune.engine.image_counts import ImageCounts
from segtune.metrics import VOLUME_METRICS

Measured = ImageCounts | CaseValues
"""What a run has left for each image, or for each volume."""

LEVEL = 0.95
"""Of every interval."""

CHUNK = 500
"""Draws computed at once."""


def _mean(scores: Floats) -> Floats:
    """Mean over the last axis without the classes that do not count; NaN where none does."""
    counted = ~np.isnan(scores)
    total = np.where(counted, scores, 0.0).sum(-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / counted.sum(-1))


def _ratio(part: Floats, whole: Floats, counts: NDArray[np.bool_]) -> Floats:
    return np.where(counts, part / np.maximum(whole, 1), np.nan)


def _iou(right: Floats, true: Floats, predicted: Floats) -> Floats:
    union = true + predicted - right
    return _ratio(right, union, union > 0)


def _dice(right: Floats, true: Floats, predicted: Floats) -> Floats:
    return _ratio(2 * right, true + predicted, true + predicted > 0)


def _precision(right: Floats, true: Floats, predicted: Floats) -> Floats:
    return _ratio(right, predicted, true + predicted > 0)


def _recall(right: Floats, true: Floats, predicted: Floats) -> Floats:
    return _ratio(right, true, true > 0)


def _accuracy(right: Floats, true: Floats, predicted: Floats) -> Floats:
    return np.asarray(right.sum(-1) / np.maximum(true.sum(-1), 1))


Score = Callable[[Floats, Floats, Floats], Floats]
"""Pixels [..., K] that are right, in the mask, in the prediction, to scores [...]."""

SCORES: dict[str, Score] = {
    "miou": lambda *counts: _mean(_iou(*counts)),
    "dice": lambda *counts: _mean(_dice(*counts)),
    "precision": lambda *counts: _mean(_precision(*counts)),
    "recall": lambda *counts: _mean(_recall(*counts)),
    "mean_accuracy": lambda *counts: _mean(_recall(*counts)),
    "pixel_accuracy": _accuracy,
    "foreground_iou": lambda *counts: _iou(*counts)[..., 1],
    "foreground_dice": lambda *counts: _dice(*counts)[..., 1],
}
"""Scores of a whole set that have an interval; they equal the metrics of the same names."""

PER_IMAGE: dict[str, Score] = {"miou_per_image": SCORES["miou"]}
"""Scores that are means over images, by what is computed of each image."""

HAVE_INTERVALS = frozenset({*SCORES, *PER_IMAGE, *VOLUME_METRICS})

FEWEST_UNITS = 6
"""Of images, volumes or groups: where n pairs all favour one row, luck alone does so in 2 of 2^n cases; with
fewer pairs no difference can be shown at the 95 % level, whatever the scores are."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Draws:
    """Sets of images drawn with replacement, the same for every row.

    Args:
        names: of the images.
        groups: of the images; drawn whole where given, every image of no group for itself.
        num_draws: number of sets.
        seed: of the draws.
    """

    def __init__(
        self, names: Sequence[str], groups: Sequence[str | None] | None, num_draws: int, seed: int = 0
    ) -> None:
        units = (
            list(names) if groups is None else [g or f"image {n}" for g, n in zip(groups, names, strict=True)]
        )
        order = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
        member = np.zeros((len(order), len(names)))
        member[[order[unit] for unit in units], range(len(names))] = 1
        generator = np.random.default_rng(seed)
        shares = np.full(len(order), 1 / len(order))
        self.num_units = len(order)
        self.weights: Floats = generator.multinomial(len(order), shares, num_draws) @ member
        """[R, N] how often each draw holds each image."""
        self.generator = generator

    def scores(self, counts: Measured, score: str) -> Floats:
        """[R] score of each draw."""
        if isinstance(counts, CaseValues):
            return counts.means(self.weights)
        tables = (counts.right, counts.true, counts.predicted)
        if score in PER_IMAGE:
            of_images = PER_IMAGE[score](*(table.astype(float) for table in tables))  # [N]
            known = ~np.isnan(of_images)
            return np.asarray(self.weights[:, known] @ of_images[known] / self.weights[:, known].sum(1))
        compute = SCORES[score]
        return np.concatenate(
            [
                compute(*(self.weights[start : start + CHUNK] @ table for table in tables))
                for start in range(0, len(self.weights), CHUNK)
            ]
        )


def score_of(counts: Measured, score: str) -> float:
    """The score of the whole set."""
    if isinstance(counts, CaseValues):
        return float(counts.means(np.ones((1, len(counts.names))))[0])
    tables = [table.astype(float) for table in (counts.right, counts.true, counts.predicted)]
    if score in PER_IMAGE:
        return float(np.nanmean(PER_IMAGE[score](*tables)))
    return float(SCORES[score](*(table.sum(0) for table in tables)))


def interval(value: float, drawn: Floats) -> Interval:
    """The percentile interval of a value from its draws; those that have no score are left out."""
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def difference(value: float, first: Floats, second: Floats, draws: Draws) -> Interval:
    """How much the first of two rows scores above the second.

    Args:
        value: the difference of their scores on the real images.
        first: [S, R] score of each seed of a row on each draw.
        second: [T, R] of the other row, on the same draws.
        draws: for the drawing of seeds.

    Returns:
        The difference with its interval; the rows can be told apart where it leaves out 0.
    """
    return interval(value, _seed_means(first, draws) - _seed_means(second, draws))


def _seed_means(scores: Floats, draws: Draws) -> Floats:
    """[R] mean over seeds that are drawn anew for each draw of images."""
    num_seeds, num_draws = scores.shape
    chosen = draws.generator.integers(num_seeds, size=(num_seeds, num_draws))
    return np.asarray(np.take_along_axis(scores, chosen, axis=0).mean(0))
