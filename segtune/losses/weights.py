"""Class weights of losses: checked once, then averaged over the pixels that count."""

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
