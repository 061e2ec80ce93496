"""Symmetric cross entropy: cross entropy plus its reverse, for masks with wrong labels.

    loss of a pixel = alpha * -log(p) + beta * -log_of_zero * (1 - p)    p = probability of its class

The second term is the cross entropy with prediction and label exchanged, where the logarithm of the
label's zeros is set to a number. It is bounded, so a wrong label pulls with limited force; the first
term keeps learning fast. Classes that a batch does not show have no part of their own in it.

Source: Wang et al. 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels", section 3.2;
A there is `log_of_zero` here.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from segtune.losses.weights import ClassWeightsSettings, class_weights, of_true_class, weighted_mean


class SymmetricCrossEntropySettings(ClassWeightsSettings):
    """Settings of the symmetric cross entropy."""

    alpha: float = Field(1.0, ge=0, allow_inf_nan=False, description="factor of the cross entropy")
    beta: float = Field(1.0, gt=0, allow_inf_nan=False, description="factor of the reverse cross entropy")
    log_of_zero: float = Field(
        -4.0, lt=0, allow_inf_nan=False, description="stands for log 0 in the reverse cross entropy"
    )


class SymmetricCrossEntropy(nn.Module):
    """Cross entropy and reverse cross entropy, averaged over the pixels that count.

    Args:
        settings: the factors, the logarithm of zero and class weights.
        num_classes: K.
        ignore_index: mask value that does not count.

    Raises:
        SettingsError: the class weights do not fit the classes.
    """

    weights: Tensor | None

    def __init__(self, settings: SymmetricCrossEntropySettings, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.settings = settings
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
        reverse = self.settings.log_of_zero * torch.expm1(log_p)
        losses = self.settings.beta * reverse - self.settings.alpha * log_p
        return weighted_mean(losses, masks, self.weights, self.ignore_index)
