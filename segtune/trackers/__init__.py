"""Experiment trackers by name. A new tracker is one file here and one line below."""

from __future__ import annotations

from segtune.registry import Registry

TRACKERS = Registry(
    "tracker",
    {
        "tensorboard": "segtune.trackers.tensorboard:TensorBoard",
        "wandb": "segtune.trackers.wandb:Wandb",
        "mlflow": "segtune.trackers.mlflow:Mlflow",
        "trackio": "segtune.trackers.trackio:Trackio",
    },
)
