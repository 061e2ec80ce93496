"""IoU of class 1 where there are two classes (background, foreground)."""

from __future__ import annotations

from segtune.metrics.per_class import class_iou
from segtune.metrics.tally import Tally


def foreground_iou(tally: Tally) -> float:
    """IoU of the foreground over the whole set; NaN unless there are exactly two classes."""
    return float(class_iou(tally)[1]) if tally.num_classes == 2 else float("nan")
