"""Mean balanced error rate: each class against the rest, averaged over classes; lower is better.

The balanced error rate of a class is the mean of two shares: of its pixels that are missed, and of all
other pixels that are taken for it.
"""

from __future__ import annotations

import numpy as np

from segtune.metrics.per_class import ClassScores, mean_over_classes
from segtune.metrics.tally import Tally


def class_ber(tally: Tally) -> ClassScores:
    """Balanced error rate of each class; NaN where it, or the rest, is in no mask."""
    true, predicted = tally.confusion.sum(axis=1), tally.confusion.sum(axis=0)
    right = tally.confusion.diagonal()
    rest = true.sum() - true
    missed = (true - right) / np.maximum(true, 1)
    false = (predicted - right) / np.maximum(rest, 1)
    return np.where((true > 0) & (rest > 0), (missed + false) / 2, np.nan)


def mean_ber(tally: Tally) -> float:
    """Mean balanced error rate of the classes that occur in the masks."""
    return mean_over_classes(class_ber(tally))
