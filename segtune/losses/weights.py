"""What losses of single pixels share: class weights, and means over the pixels that count."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from segtune.errors import SettingsError
from segtune.settings import Settings


class ClassWeightsSettings(Settings):
    """The setting that losses with class weights share."""

    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = Field(
        None, description="one factor for each class, in the order of the classes; null: equal"
    )


def class_weights(weights: tuple[float, ...] | None, num_classes: int) -> Tensor | None:
    """The weights as a tensor.

    Args:
        weights: one factor for each class, or None for equal weights.
        num_classes: K.

    Returns:
        float32 [K], or None.

    Raises:
        SettingsError: there is not exactly one weight for each class, or all are zero.
    """
    if weights is None:
        return None
    if len(weights) != num_classes:
        raise SettingsError(
            [
                f"loss.weights: {len(weights)} values for {num_classes} classes; "
                "give one value for each class, in the order of the classes"
            ]
        )
    if not any(weights):
        raise SettingsError(["loss.weights: every value is 0; at least one class must count"])
    return torch.tensor(weights, dtype=torch.float32)


def of_true_class(values: Tensor, masks: Tensor, ignore_index: int) -> Tensor:
    """Each pixel's value for the class that the mask says.

    Args:
        values: [B, K, H, W].
        masks: int64 [B, H, W].
        ignore_index: mask value that does not count.

    Returns:
        [B, H, W]; where a pixel does not count, the value of class 0.
    """
    labels = torch.where(masks != ignore_index, masks, 0)
    return values.gather(1, labels.unsqueeze(1)).squeeze(1)


def weighted_mean(losses: Tensor, masks: Tensor, weights: Tensor | None, ignore_index: int) -> Tensor:
    """The mean of the pixels that count, each with the weight of its class.

    Args:
        losses: [B, H, W]; finite also where a pixel does not count.
        masks: int64 [B, H, W].
        weights: float32 [K], or None for equal weights.
        ignore_index: mask value that does not count.

    Returns:
        Scalar; 0 where no pixel counts.
    """
    counts = masks != ignore_index
    losses = losses * counts
    if weights is not None:
        losses = losses * weights[torch.where(counts, masks, 0)]
    return mean_over_pixels(losses.sum(), masks, weights, ignore_index)


def mean_over_pixels(total: Tensor, masks: Tensor, weights: Tensor | None, ignore_index: int) -> Tensor:
    """Divides a summed loss by the weight of the pixels that count.

    Args:
        total: scalar, the sum of the weighted loss of each pixel.
        masks: int64 [B, H, W].
        weights: float32 [K], or None for equal weights.
        ignore_index: mask value that does not count.

    Returns:
        Scalar; `total` itself (zero) where no pixel counts.
    """
    counts = masks != ignore_index
    if weights is None:
        divisor = counts.sum().float()
    else:
        divisor = torch.where(counts, weights[torch.where(counts, masks, 0)], 0.0).sum()
    return total / torch.where(divisor > 0, divisor, 1.0)
