"""Mean recall: share of each class's pixels that is found, averaged over classes."""

from __future__ import annotations

from segtune.metrics.per_class import class_recall, mean_over_classes
from segtune.metrics.tally import Tally


def recall(tally: Tally) -> float:
    """Mean recall of the classes that occur in the masks."""
    return mean_over_classes(class_recall(tally))
