"""Mean precision: share of the pixels predicted as a class that is right, averaged over classes."""

from __future__ import annotations

from segtune.metrics.per_class import class_precision, mean_over_classes
from segtune.metrics.tally import Tally


def precision(tally: Tally) -> float:
    """Mean precision of the classes that occur in masks or predictions."""
    return mean_over_classes(class_precision(tally))
