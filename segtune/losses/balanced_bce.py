"""Balanced BCE: foreground and background have the same say, however few pixels one of them has.

    loss = mean over pixels of (n- / n) * -log(p) in the foreground, (n+ / n) * -log(1 - p) elsewhere

n+ and n- are the foreground and background pixels of the whole batch that count, n both together. At
n+ = n- it is half the cross entropy. A batch that shows only one of the two gives 0: use larger batches
where many images have no object.

With two classes the foreground is the second one. With more, each class is the foreground once, and the
loss is the mean over the classes; those that a batch does not show add 0.

Source: Xie and Tu 2015, "Holistically-Nested Edge Detection", equation 2, with the counts of the batch in
place of those of one image, so that images without an object count too; and the mean over pixels in
place of their sum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtune.losses.one_vs_rest import one_vs_rest
from segtune.settings import Settings


class BalancedBceSettings(Settings):
    """Balanced BCE takes no settings."""


class BalancedBce(nn.Module):
    """BCE in which foreground and background weigh the same.

    Args:
        settings: none.
        num_classes: K.
        ignore_index: mask value that does not count.
    """

    def __init__(self, settings: BalancedBceSettings, num_classes: int, ignore_index: int) -> None:
        super().__init__()
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
        num_pixels = counts.sum().clamp(min=1)
        losses = []
        for margin, truth in one_vs_rest(logits, masks, self.ignore_index):
            share = truth.sum() / num_pixels
            weights = torch.where(truth > 0, 1 - share, share) * counts
            bce = F.binary_cross_entropy_with_logits(margin, truth, reduction="none")
            losses.append((weights * bce).sum() / num_pixels)
        return torch.stack(losses).mean()
