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
        "balanced_bce": "segtune.losses.balanced_bce:BalancedBce",
        "structure": "segtune.losses.structure:Structure",
        "symmetric_cross_entropy": "segtune.losses.symmetric_cross_entropy:SymmetricCrossEntropy",
        "bootstrapped_cross_entropy": "segtune.losses.bootstrapped_cross_entropy:BootstrappedCrossEntropy",
        "set_matching": "segtune.losses.set_matching:SetMatching",
    },
)
