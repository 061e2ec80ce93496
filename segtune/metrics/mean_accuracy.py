"""Mean accuracy: share of each class's pixels that is right, averaged over classes; equals recall.

Papers on segmentation report this number as "mean accuracy", papers on detection as "recall".
"""

from __future__ import annotations

from segtune.metrics.per_class import class_recall, mean_over_classes
from segtune.metrics.tally import Tally


def mean_accuracy(tally: Tally) -> float:
    """Mean accuracy of the classes that occur in the masks."""
    return mean_over_classes(class_recall(tally))
