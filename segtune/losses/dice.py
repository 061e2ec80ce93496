"""Soft Dice loss: one minus the overlap of each class, every class alike whatever its size.

    dice of a class = (2 * sum(p * y) + smooth) / (sum(p) + sum(y) + smooth)

Sums run over the whole batch, the mean over the classes that occur in its masks: the Dice of a
class that has no pixel says nothing about overlap, and counting it as 1 or 0 would only move the
loss up and down from batch to batch.

Source: Milletari et al. 2016, "V-Net", section 3, with the plain sums in the denominator.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from segtune.settings import Settings


class DiceSettings(Settings):
    """Settings of the Dice loss."""

    smooth: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="pixels added to overlap and size of each class"
    )


class Dice(nn.Module):
    """Soft Dice loss over the classes present in the batch.

    Args:
        settings: smoothing.
        num_classes: K.
        ignore_index: mask value that does not count.
    """

    def __init__(self, settings: DiceSettings, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.smooth = settings.smooth
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            logits: [B, K, H, W], any float type.
            masks: int64 [B, H, W].

        Returns:
            float32 scalar in [0, 1]; 0 with zero gradient where no pixel counts.
        """
        counts = (masks != self.ignore_index).unsqueeze(1)
        probabilities = logits.float().softmax(dim=1) * counts
        classes = torch.arange(self.num_classes, device=masks.device).view(1, -1, 1, 1)
        is_class = (masks.unsqueeze(1) == classes) & counts  # [B, K, H, W]

        overlap = (probabilities * is_class).sum(dim=(0, 2, 3))  # [K]
        sizes = is_class.sum(dim=(0, 2, 3))
        present = sizes > 0
        denominator = probabilities.sum(dim=(0, 2, 3)) + sizes + self.smooth
        score = (2 * overlap + self.smooth) / torch.where(present, denominator, 1.0)
        return ((1 - score) * present).sum() / present.sum().clamp(min=1)
