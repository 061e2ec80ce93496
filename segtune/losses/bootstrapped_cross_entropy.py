"""Bootstrapped cross entropy: the label is mixed with what the model believes, for masks with wrong labels.

    loss of a pixel = -sum over k of (beta * y_k + (1 - beta) * b_k) * log(p_k)

y is the mask's class, p the probabilities, b the belief: p itself (soft), or 1 for the most probable class
(hard). A label that the model is sure is wrong weighs less; with beta 1 it is the cross entropy. Best
started from weights that know something already. Classes that a batch does not show have no part of
their own in it.

Not the loss of the hardest pixels alone, which some call by the same name.

Source: Reed et al. 2015, "Training Deep Neural Networks on Noisy Labels with Bootstrapping", section 3.2,
with the values of beta from its section 4.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from segtune.losses.weights import ClassWeightsSettings, class_weights, of_true_class, weighted_mean

_BETA = {"soft": 0.95, "hard": 0.8}


class BootstrappedCrossEntropySettings(ClassWeightsSettings):
    """Settings of the bootstrapped cross entropy."""

    belief: Literal["soft", "hard"] = Field(
        "soft", description="soft: the probabilities; hard: the most probable class"
    )
    beta: float | None = Field(
        None, ge=0, le=1, description="share of the mask's label; default: 0.95 for soft, 0.8 for hard"
    )


class BootstrappedCrossEntropy(nn.Module):
    """Cross entropy with labels mixed with beliefs, averaged over the pixels that count.

    Args:
        settings: the kind of belief, its share and class weights.
        num_classes: K.
        ignore_index: mask value that does not count.

    Raises:
        SettingsError: the class weights do not fit the classes.
    """

    weights: Tensor | None

    def __init__(
        self, settings: BootstrappedCrossEntropySettings, num_classes: int, ignore_index: int
    ) -> None:
        super().__init__()
        self.belief = settings.belief
        self.beta = _BETA[settings.belief] if settings.beta is None else settings.beta
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
        if self.belief == "soft":
            believed = (log_probabilities.exp() * log_probabilities).sum(dim=1)
        else:
            believed = log_probabilities.amax(dim=1)
        losses = -(self.beta * log_p + (1 - self.beta) * believed)
        return weighted_mean(losses, masks, self.weights, self.ignore_index)
