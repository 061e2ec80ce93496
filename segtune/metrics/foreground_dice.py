"""Dice (F1) of class 1 where there are two classes (background, foreground)."""

from __future__ import annotations

from segtune.metrics.per_class import class_dice
from segtune.metrics.tally import Tally


def foreground_dice(tally: Tally) -> float:
    """Dice of the foreground over the whole set; NaN unless there are exactly two classes."""
    return float(class_dice(tally)[1]) if tally.num_classes == 2 else float("nan")
