"""Structure loss: BCE and IoU of the foreground, weighted towards its edges.

    weight of a pixel = 1 + edge_factor * |share of foreground around it - foreground|
    loss of an image = sum(weight * BCE) / sum(weight)
                       + 1 - (sum(weight * p * y) + 1) / (sum(weight * (p + y - p * y)) + 1)

The loss of polyp and camouflage segmentation: thin parts and edges weigh up to six times as much as the
inside of a large object. The share is that of a window of 31 pixels; ignored pixels are not part of
it, and what lies outside the image is background, as published. The mean of all images; an image
without foreground asks for an empty prediction.

With two classes the foreground is the second one. With more, each class is the foreground once, and the
loss is the mean over the classes; a class that an image does not show asks for an empty prediction there.

Source: Wei et al. 2020, "F3Net: Fusion, Feedback and Focus for Salient Object Detection", section 3.4
(pixel position aware loss), with the factor 5 and the window of 31 pixels given there.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from segtune.losses.one_vs_rest import one_vs_rest
from segtune.settings import Settings

WINDOW = 31


class StructureSettings(Settings):
    """Settings of the structure loss."""

    edge_factor: float = Field(
        5.0, ge=0, allow_inf_nan=False, description="how much more a pixel weighs at an edge; 0: pixels alike"
    )


class Structure(nn.Module):
    """Edge-weighted BCE plus edge-weighted IoU, averaged over images.

    Args:
        settings: the factor of edges.
        num_classes: K.
        ignore_index: mask value that does not count.
    """

    def __init__(self, settings: StructureSettings, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.edge_factor = settings.edge_factor
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            logits: [B, K, H, W], any float type.
            masks: int64 [B, H, W].

        Returns:
            float32 scalar; 0 with zero gradient where no pixel counts.
        """
        counts = (masks != self.ignore_index).float()
        num_images = counts.any(dim=(1, 2)).sum().clamp(min=1)
        losses = [
            _of_foreground(margin, truth, self._weights(truth, counts)).sum() / num_images
            for margin, truth in one_vs_rest(logits, masks, self.ignore_index)
        ]
        return torch.stack(losses).mean()

    def _weights(self, truth: Tensor, counts: Tensor) -> Tensor:
        """The weight of each pixel, [B, H, W]; 0 where it does not count."""
        around = _window_mean(F.pad(truth, (WINDOW // 2,) * 4))
        known = _window_mean(F.pad(counts, (WINDOW // 2,) * 4, value=1.0))
        share = around / known.clamp(min=torch.finfo(torch.float32).eps)
        return (1 + self.edge_factor * (share - truth).abs()) * counts


def _window_mean(maps: Tensor) -> Tensor:
    return F.avg_pool2d(maps[:, None], WINDOW, stride=1)[:, 0]


def _of_foreground(margin: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """The loss of each image, [B]; of an image without a weight it is 0."""
    pixels = (1, 2)
    bce = F.binary_cross_entropy_with_logits(margin, truth, reduction="none")
    total = weights.sum(dim=pixels)
    bce = (weights * bce).sum(dim=pixels) / torch.where(total > 0, total, 1.0)
    inside = margin.sigmoid()
    overlap = (weights * inside * truth).sum(dim=pixels)
    union = (weights * (inside + truth)).sum(dim=pixels) - overlap
    return bce + 1 - (overlap + 1) / (union + 1)
