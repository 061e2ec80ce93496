"""Metrics by name. A new metric is one file here and one line below.

A metric is a function from a `Tally` (counts of the whole evaluation) to one number. A saliency score is
one from a `SaliencyTally` (values of each foreground map), for two classes; it is computed where it is
asked for, since it takes longer than the counts. A metric of volumes is one from a region of one volume,
averaged by `volume_scores.py`.
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
        "foreground_iou_per_image": "segtune.metrics.foreground_iou_per_image:foreground_iou_per_image",
        "foreground_dice_per_image": "segtune.metrics.foreground_dice_per_image:foreground_dice_per_image",
        "thresholded_jaccard": "segtune.metrics.thresholded_jaccard:thresholded_jaccard",
        "ber": "segtune.metrics.ber:ber",
        "mean_ber": "segtune.metrics.mean_ber:mean_ber",
    },
)

SALIENCY = Registry(
    "saliency score",
    {
        "s_measure": "segtune.metrics.s_measure:s_measure",
        "e_measure_max": "segtune.metrics.e_measure_max:e_measure_max",
        "e_measure_mean": "segtune.metrics.e_measure_mean:e_measure_mean",
        "e_measure_adaptive": "segtune.metrics.e_measure_adaptive:e_measure_adaptive",
        "weighted_f": "segtune.metrics.weighted_f:weighted_f",
        "mean_absolute_error": "segtune.metrics.mean_absolute_error:mean_absolute_error",
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
