"""Metrics by name. A new metric is one file here and one line below."""

from __future__ import annotations

from segtune.registry import Registry

METRICS = Registry(
    "metric",
    {
        "miou": "segtune.metrics.confusion:MeanIoU",
    },
)
