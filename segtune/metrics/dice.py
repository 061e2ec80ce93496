"""Mean Dice (F1): twice the overlap over the sum of sizes, over the whole set, averaged over classes."""

from __future__ import annotations

from segtune.metrics.per_class import class_dice, mean_over_classes
from segtune.metrics.tally import Tally


def dice(tally: Tally) -> float:
    """Mean Dice of the classes that occur in masks or predictions."""
    return mean_over_classes(class_dice(tally))
