"""Metrics by name. A new metric is one file here and one line below.

A metric is a function from a `Tally` (counts of the whole evaluation) to one number. A metric of volumes
is a function from one region of one volume to one number, averaged by `volume_scores.py`.
"""

from __future__ import annotations

from segtune.registry import Registry

METRICS = Registry(
    "metric",
    {
        "miou": "segtune.metrics.miou:miou",
        "miou_per_image": "segtune.metrics.miou_per_image:miou_per_image",
        "dice": "segtune.metrics.dice:dice",
        "pixel_accuracy": "segtune.metrics.pixel_accuracy:pixel_accuracy",
        "mean_accuracy": "segtune.metrics.mean_accuracy:mean_accuracy",
        "precision": "segtune.metrics.precision:precision",
        "recall": "segtune.metrics.recall:recall",
        "foreground_iou": "segtune.metrics.foreground_iou:foreground_iou",
        "foreground_dice": "segtune.metrics.foreground_dice:foreground_dice",
    },
)

VOLUME_METRICS = Registry(
    "metric of volumes",
    {
        "volume_dice": "segtune.metrics.volume_dice:volume_dice",
        "volume_hd95": "segtune.metrics.volume_hd95:volume_hd95",
        "volume_surface_dice": "segtune.metrics.volume_surface_dice:volume_surface_dice",
    },
)
