"""Focal loss: cross entropy that looks away from pixels that are already right.

    loss of a pixel = (1 - p)^gamma * -log(p)      p = probability of the pixel's true class

With gamma 0 it is the cross entropy. Useful where most pixels are easy background.

Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3.2, in its softmax form;
the paper's alpha is `weights` here.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from segtune.losses.weights import ClassWeightsSettings, class_weights, of_true_class, weighted_mean


class FocalSettings(ClassWeightsSettings):
    """Settings of the focal loss."""

    gamma: float = Field(
        2.0, ge=0, le=10, description="how strongly pixels that are already right are played down; 0: not"
    )


class Focal(nn.Module):
    """Focal loss, averaged over the pixels that count as the cross entropy is.

    Args:
        settings: gamma and class weights.
        num_classes: K.
        ignore_index: mask value that does not count.

    Raises:
        SettingsError: the class weights do not fit the classes.
    """

    weights: Tensor | None

    def __init__(self, settings: FocalSettings, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.gamma = settings.gamma
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
        log_probabilities = F.log_softmax(logits.float(), dim=1)
        log_p = of_true_class(log_probabilities, masks, self.ignore_index)
        # The slope of x^gamma at 0 is infinite for gamma < 1, and infinity times 0 is not a number.
        wrong = (-torch.expm1(log_p)).clamp(min=torch.finfo(torch.float32).tiny)
        losses = wrong**self.gamma * -log_p
        return weighted_mean(losses, masks, self.weights, self.ignore_index)
