"""Cross entropy of every pixel, with class weights and label smoothing.

The default. It treats pixels alike, so a class with few pixels has little say; give it a weight, or
use `dice_cross_entropy`. The computation is PyTorch's own.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from segtune.losses.weights import ClassWeightsSettings, class_weights, mean_over_pixels


class CrossEntropySettings(ClassWeightsSettings):
    """Settings of the cross entropy."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target that is spread evenly over all classes"
    )


class CrossEntropy(nn.Module):
    """Cross entropy, averaged over the pixels that count.

    Args:
        settings: class weights and label smoothing.
        num_classes: K.
        ignore_index: mask value that does not count.

    Raises:
        SettingsError: the class weights do not fit the classes.
    """

    weights: Tensor | None

    def __init__(self, settings: CrossEntropySettings, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.label_smoothing = settings.label_smoothing
        self.ignore_index = ignore_index
        self.register_buffer("weights", class_weights(settings.weights, num_classes), persistent=False)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            logits: [B, K, H, W], any float type.
            masks: int64 [B, H, W].

        Returns:
            float32 scalar; 0 with zero gradient where no pixel counts.
        """
        # Averaged here: PyTorch's own mean is 0 / 0 where no pixel counts.
        losses = F.cross_entropy(
            logits.float(),
            masks,
            weight=self.weights,
            ignore_index=self.ignore_index,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return mean_over_pixels(losses.sum(), masks, self.weights, self.ignore_index)
