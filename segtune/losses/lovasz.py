"""Lovász-Softmax: a convex stand-in for the IoU itself.

For each class the errors |y - p| of all pixels are sorted, largest first, and summed with the weight
by which the class's Jaccard loss grows when that pixel becomes wrong too. Best used to finish a
training that began with cross entropy.

Source: Berman et al. 2018, "The Lovász-Softmax loss", algorithm 1 and section 3.2 (classes present
in the batch).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segtune.settings import Settings


class LovaszSettings(Settings):
    """The Lovász-Softmax loss takes no settings."""


class Lovasz(nn.Module):
    """Lovász-Softmax over the classes present in the batch.

    Args:
        settings: none.
        num_classes: K.
        ignore_index: mask value that does not count.
    """

    def __init__(self, settings: LovaszSettings, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            logits: [B, K, H, W], any float type.
            masks: int64 [B, H, W].

        Returns:
            float32 scalar in [0, 1]; 0 with zero gradient where no pixel counts.
        """
        counts = masks != self.ignore_index
        labels = masks[counts]  # [P]
        probabilities = logits.float().softmax(dim=1).movedim(1, 0)[:, counts]  # [K, P]
        classes: list[int] = labels.bincount().nonzero().flatten().tolist()
        if not classes:
            return probabilities.sum()  # of no element: 0, and still part of the graph
        return torch.stack([_of_class(probabilities[c], labels == c) for c in classes]).mean()


def _of_class(probabilities: Tensor, is_class: Tensor) -> Tensor:
    """Lovász extension of the Jaccard loss of one class; both arguments are [P]."""
    errors = torch.where(is_class, 1 - probabilities, probabilities)
    errors, order = errors.sort(descending=True)
    return (errors * _growth(is_class[order])).sum()


def _growth(is_class: Tensor) -> Tensor:
    """How much the Jaccard loss grows with each pixel that becomes wrong, in the order given.

    A missed pixel takes one from the intersection I and leaves the union U: the loss grows by 1 / U.
    A false one adds to the union: it grows by I / (U - 1) - I / U. Written like this nothing cancels;
    differences of the loss itself, near 1 / P each, would lose most of their float32 digits.
    """
    missed = is_class.long().cumsum(0)
    false = (~is_class).long().cumsum(0)
    intersection = (missed[-1] - missed).float()
    union = (missed[-1] + false).float()
    return torch.where(is_class, 1 / union, intersection / (union * (union - 1)))
