"""Mean IoU: intersection over union of each class over the whole set, averaged over classes."""

from __future__ import annotations

from segtune.metrics.per_class import class_iou, mean_over_classes
from segtune.metrics.tally import Tally


def miou(tally: Tally) -> float:
    """Mean IoU of the classes that occur in masks or predictions."""
    return mean_over_classes(class_iou(tally))
