"""Scores of whole volumes: Dice and surface distances of each case and region, and their means.

The policy on regions that are empty, for every score of volumes:

- in neither mask nor prediction of a case: there is nothing to judge; the case is left out for that region;
- in one of the two only: Dice and surface Dice are 0, and the distance is the volume's diagonal, the
  largest that there can be. They count: a false alarm is a mistake, and so is a tumour that was missed.

A mean is taken over the cases that count for each region, then over the regions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from segtune.metrics import VOLUME_METRICS

CaseScores = dict[str, dict[str, float | None]]
"""Metric -> region -> score, None where the case is left out."""


class VolumeTally:
    """Scores volumes, case after case.

    Args:
        regions: what is scored: name -> classes that make it up.
        tolerance: of the surface Dice, in millimetres.
        ignore_index: mask value that does not count.
    """

    def __init__(self, regions: Mapping[str, Sequence[int]], tolerance: float, ignore_index: int) -> None:
        self.regions = regions
        self.tolerance = tolerance
        self.ignore_index = ignore_index
        self.cases: dict[str, CaseScores] = {}

    def update(
        self, prediction: ArrayLike, mask: ArrayLike, name: str, spacing: tuple[float, float, float]
    ) -> None:
        """Adds one case.

        Args:
            prediction: [D, H, W] class of each voxel.
            mask: [D, H, W] true class of each voxel, or the ignore index.
            name: of the case.
            spacing: millimetres between voxels along each axis.
        """
        prediction, mask = np.asarray(prediction), np.asarray(mask)
        counts = mask != self.ignore_index
        scores: CaseScores = {metric: {} for metric in VOLUME_METRICS}
        for region, members in self.regions.items():
            found, true = np.isin(prediction, members) & counts, np.isin(mask, members) & counts
            for metric in VOLUME_METRICS:
                empty = not found.any() and not true.any()
                scores[metric][region] = (
                    None if empty else VOLUME_METRICS.load(metric)(found, true, spacing, self.tolerance)
                )
        self.cases[name] = scores

    def scores(self) -> dict[str, float]:
        """The mean of each metric over cases and regions; a metric that no case counts for is left out."""
        result = {}
        for metric in VOLUME_METRICS:
            means = [mean for mean in self.region_means(metric).values() if mean is not None]
            if means:
                result[metric] = math.fsum(means) / len(means)
        return result

    def region_means(self, metric: str) -> dict[str, float | None]:
        """The mean of a metric over the cases that count, for each region."""
        means: dict[str, float | None] = {}
        for region in self.regions:
            values = [v for case in self.cases.values() if (v := case[metric][region]) is not None]
            means[region] = math.fsum(values) / len(values) if values else None
        return means


def diagonal(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> float:
    """Length in millimetres of the diagonal between the outermost voxels' centres."""
    return math.hypot(*((size - 1) * step for size, step in zip(shape, spacing, strict=True)))
