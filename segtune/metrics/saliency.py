"""Saliency scores: what the literature on salient, hidden and medical objects measures on foreground maps.

A map is the foreground's probability, as the model gives it: not stretched to [0, 1], which would make
a foreground out of an image that has none. Each score is a mean over images, so that the order of
images and the batch size do not matter.

Ignored pixels count as background that was predicted as such; an image in which no pixel counts is
left out.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segtune.metrics import SALIENCY
from segtune.metrics.e_measure import e_adaptive, e_curve
from segtune.metrics.s_measure import s_of_image
from segtune.metrics.weighted_f import weighted_f_of_image


class SaliencyTally:
    """Values of each image from which saliency scores are computed.

    Args:
        ignore_index: mask value that does not count.
    """

    def __init__(self, ignore_index: int) -> None:
        self.ignore_index = ignore_index
        self.s: list[float] = []
        """S-measure of each image."""
        self.e_adaptive: list[float] = []
        """E-measure of each image at its own threshold."""
        self.e_curves: list[NDArray[np.float64]] = []
        """E-measure [256] of each image at every threshold."""
        self.weighted_f: list[float] = []
        """Weighted F of each image that has a foreground."""
        self.errors: list[float] = []
        """Mean absolute error of each image."""

    def update(self, foreground: ArrayLike, mask: ArrayLike) -> None:
        """Adds one image.

        Args:
            foreground: [H, W] probability of class 1; a numpy array or a tensor on the CPU.
            mask: [H, W] true class of each pixel, 0 or 1, or the ignore index.
        """
        mask = np.asarray(mask)
        counts = mask != self.ignore_index
        if not counts.any():
            return
        probability = np.where(counts, np.asarray(foreground, dtype=np.float64), 0.0).clip(0, 1)
        truth = (mask == 1) & counts
        self.s.append(s_of_image(probability, truth))
        self.e_adaptive.append(e_adaptive(probability, truth))
        self.e_curves.append(e_curve(probability, truth))
        self.errors.append(float(np.abs(probability - truth).mean()))
        if truth.any():
            self.weighted_f.append(weighted_f_of_image(probability, truth))

    def merge(self, other: SaliencyTally) -> None:
        """Adds the images of another tally."""
        for name in ("s", "e_adaptive", "e_curves", "weighted_f", "errors"):
            getattr(self, name).extend(getattr(other, name))


def saliency_scores(tally: SaliencyTally) -> dict[str, float]:
    """Every score of the registry by name, without those that no image counts for."""
    scores = {name: SALIENCY.load(name)(tally) for name in SALIENCY}
    return {name: score for name, score in scores.items() if not math.isnan(score)}
