"""Counts of a whole evaluation: one confusion matrix over the set, and overlaps of each image.

Every score is computed from these whole numbers alone, so it depends neither on the batch size nor
on the order of the images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segtune.errors import DataError

Counts = NDArray[np.int64]


class Tally:
    """Counts pixels, image after image.

    Args:
        num_classes: K.
        ignore_index: mask value that does not count.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.confusion: Counts = np.zeros((num_classes, num_classes), dtype=np.int64)
        """[K, K] pixels of the whole set; row = class in the mask, column = predicted class."""
        self.names: list[str] = []
        """N names of images, in the order in which they came."""
        self._intersections: list[Counts] = []
        self._unions: list[Counts] = []
        self._areas: list[Counts] = []

    def update(self, prediction: ArrayLike, mask: ArrayLike, name: str) -> None:
        """Adds one image.

        Args:
            prediction: [H, W] class of each pixel, 0..K-1; a numpy array or a tensor on the CPU.
            mask: [H, W] true class of each pixel, or the ignore index.
            name: of the image, for the scores of single images.

        Raises:
            DataError: the mask holds a value that is neither a class nor the ignore index.
        """
        prediction, mask = np.asarray(prediction), np.asarray(mask)
        assert prediction.shape == mask.shape, f"{name}: {prediction.shape} predicted for {mask.shape}"
        counts = mask != self.ignore_index
        truth = mask[counts].astype(np.int64)
        predicted = prediction[counts].astype(np.int64)
        wrong = truth[(truth < 0) | (truth >= self.num_classes)]
        if wrong.size:
            raise DataError(
                f"{name}: the mask holds the value {wrong[0]}, which is none of the "
                f"{self.num_classes} classes and not the ignore index {self.ignore_index}",
                hint="`segtune data check` lists the values that masks hold",
            )
        assert not predicted.size or 0 <= predicted.min() <= predicted.max() < self.num_classes, name
        size = self.num_classes
        matrix = np.bincount(truth * size + predicted, minlength=size * size).reshape(size, size)
        self.confusion += matrix
        self.names.append(name)
        intersection = matrix.diagonal()
        self._intersections.append(intersection.copy())
        self._unions.append(matrix.sum(0) + matrix.sum(1) - intersection)
        self._areas.append(matrix.sum(1))

    def merge(self, other: Tally) -> None:
        """Adds what another tally of the same classes has counted."""
        assert (self.num_classes, self.ignore_index) == (other.num_classes, other.ignore_index)
        self.confusion += other.confusion
        self.names += other.names
        self._intersections += other._intersections
        self._unions += other._unions
        self._areas += other._areas

    @property
    def intersections(self) -> Counts:
        """[N, K] pixels of each image and class that are right."""
        return np.array(self._intersections, dtype=np.int64).reshape(-1, self.num_classes)

    @property
    def unions(self) -> Counts:
        """[N, K] pixels of each image that are of the class in the mask, the prediction or both."""
        return np.array(self._unions, dtype=np.int64).reshape(-1, self.num_classes)

    @property
    def areas(self) -> Counts:
        """[N, K] pixels of each image that are of the class in the mask."""
        return np.array(self._areas, dtype=np.int64).reshape(-1, self.num_classes)
