"""Dice plus cross entropy: overlap of each class and a clear signal for every pixel.

    loss = dice_factor * dice + cross_entropy_factor * cross_entropy

A safe choice for small or unbalanced classes: Dice alone learns slowly where it starts far off,
cross entropy alone forgets small classes. The weighted "Dice-CE" of papers on medical images is this loss
with their two weights as the factors.

Source: Isensee et al. 2021, "nnU-Net", methods, where both count the same.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from segtune.losses.cross_entropy import CrossEntropy, CrossEntropySettings
from segtune.losses.dice import Dice, DiceSettings


class DiceCrossEntropySettings(CrossEntropySettings, DiceSettings):
    """Settings of Dice plus cross entropy."""

    dice_factor: float = Field(1.0, gt=0, allow_inf_nan=False, description="factor of the Dice loss")
    cross_entropy_factor: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="factor of the cross entropy"
    )


class DiceCrossEntropy(nn.Module):
    """Weighted sum of Dice loss and cross entropy.

    Args:
        settings: both factors and the settings of both losses.
        num_classes: K.
        ignore_index: mask value that does not count.

    Raises:
        SettingsError: the class weights do not fit the classes.
    """

    def __init__(self, settings: DiceCrossEntropySettings, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.dice_factor = settings.dice_factor
        self.cross_entropy_factor = settings.cross_entropy_factor
        self.dice = Dice(settings, num_classes, ignore_index)
        self.cross_entropy = CrossEntropy(settings, num_classes, ignore_index)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            logits: [B, K, H, W], any float type.
            masks: int64 [B, H, W].

        Returns:
            float32 scalar; 0 with zero gradient where no pixel counts.
        """
        dice: Tensor = self.dice(logits, masks)
        cross_entropy: Tensor = self.cross_entropy(logits, masks)
        return self.dice_factor * dice + self.cross_entropy_factor * cross_entropy
