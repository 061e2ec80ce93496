"""Losses by name. A new loss is one file here and one line below."""

from __future__ import annotations

from segtune.registry import Registry

LOSSES = Registry(
    "loss",
    {
        "cross_entropy": "segtune.losses.cross_entropy:CrossEntropy",
        "dice": "segtune.losses.dice:Dice",
        "dice_cross_entropy": "segtune.losses.dice_cross_entropy:DiceCrossEntropy",
        "focal": "segtune.losses.focal:Focal",
        "lovasz": "segtune.losses.lovasz:Lovasz",
    },
)
