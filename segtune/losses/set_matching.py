"""Set matching: each class of an image is given to one proposed mask, which learns to be its mask.

For models that propose masks, each with a class (SAM with three or more classes). In every image the
classes present are matched one to one with proposals, at the smallest sum of

    class_factor * -P(class) + mask_factor * BCE(mask) + dice_factor * Dice(mask)

The loss is the cross entropy of all proposals' classes, where those without a partner are to say "no
object" with a smaller weight, plus BCE and Dice of the matched masks, averaged over the pairs, each with
the same factors. Where an image has more classes than the model has proposals, the worst fitting classes
go without.

A mask is compared at the resolution it is proposed in: a logit stands for all pixels of its cell, of
which some may be of the class and some may not count. So no thin object is lost, as it would be in a
mask made smaller, and no logit is computed that the network did not compute.

Source
    Carion et al., End-to-End Object Detection with Transformers, 2020, section 3.1; for masks: Cheng et
    al., MaskFormer, 2021, section 3.2; the factors: Zhong et al., Convolution Meets LoRA, 2024,
    section 3.3.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from segtune.settings import Settings
from segtune.types import Proposals


class SetMatchingSettings(Settings):
    """Settings of set matching."""

    class_factor: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="factor of the cross entropy of classes"
    )
    mask_factor: float = Field(5.0, gt=0, allow_inf_nan=False, description="factor of the masks' BCE")
    dice_factor: float = Field(5.0, gt=0, allow_inf_nan=False, description="factor of the masks' Dice loss")
    no_object_weight: float = Field(
        0.1, gt=0, le=1, description="weight of proposals that no class is given to, in the cross entropy"
    )


class SetMatching(nn.Module):
    """Set matching between proposals and the classes of each image.

    Args:
        settings: the factors and the weight of "no object".
        num_classes: K.
        ignore_index: mask value that does not count.
    """

    takes_proposals = True
    """Called with what the model proposes instead of with logits."""

    weights: Tensor

    def __init__(self, settings: SetMatchingSettings, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.settings = settings
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        weights = torch.ones(num_classes + 1)
        weights[-1] = settings.no_object_weight
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, proposals: Proposals, masks: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            proposals: N masks with their classes, of any float type.
            masks: int64 [B, H, W].

        Returns:
            float32 scalar; 0 with zero gradient where no pixel counts.
        """
        with torch.autocast(masks.device.type, enabled=False):
            class_logits = proposals.class_logits.float()  # [B, N, K + 1]
            height, width = proposals.mask_logits.shape[-2:]
            shares = self._shares(masks, (height, width))  # [B, K, h w]
            mask_losses, dice_losses = _pairs(proposals.mask_logits.float().flatten(2), shares)
            factors = self.settings
            with torch.no_grad():
                costs = factors.mask_factor * mask_losses + factors.dice_factor * dice_losses
                costs -= factors.class_factor * class_logits.softmax(dim=-1)[..., :-1]
            present = shares.sum(dim=-1) > 0  # [B, K]
            image, proposal, label = match(costs, present)
            labels = torch.full(class_logits.shape[:2], self.num_classes, device=masks.device)
            labels[image, proposal] = label
            num_pairs = max(1, len(image))
            return (
                factors.class_factor * self._class_loss(class_logits, labels, present.any(dim=1))
                + factors.mask_factor * mask_losses[image, proposal, label].sum() / num_pairs
                + factors.dice_factor * dice_losses[image, proposal, label].sum() / num_pairs
            )

    def _shares(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """The share of each cell's area that is of each class, [B, K, h w]."""
        classes = torch.arange(self.num_classes, device=masks.device).view(1, -1, 1, 1)
        is_class = (masks[:, None] == classes) & (masks[:, None] != self.ignore_index)
        return F.adaptive_avg_pool2d(is_class.float(), size).flatten(2)

    def _class_loss(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        """Weighted mean over the proposals of images in which a pixel counts, as `counts` [B] says."""
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), self.weights, reduction="none")
        divisor = (self.weights[labels] * counts[:, None]).sum()
        total = (losses.view_as(labels) * counts[:, None]).sum()
        return total / torch.where(divisor > 0, divisor, 1.0)


def _pairs(logits: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """BCE and Dice loss of each proposal as the mask of each class.

    Args:
        logits: [B, N, P], of P cells.
        shares: [B, K, P], of each cell's area.

    Returns:
        Both [B, N, K].
    """
    counts = shares.sum(dim=1)  # [B, P]
    area = counts.sum(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    # the BCE of a logit x and a share t is softplus(x) - x t, so that no tensor [B, N, K, P] is needed
    misses = torch.einsum("bnp,bp->bn", F.softplus(logits), counts)
    hits = torch.einsum("bnp,bkp->bnk", logits, shares)
    inside = logits.sigmoid()
    overlap = torch.einsum("bnp,bkp->bnk", inside, shares)
    sizes = torch.einsum("bnp,bp->bn", inside, counts)[..., None] + shares.sum(dim=-1)[:, None]
    return (misses[..., None] - hits) / area[:, None, None], 1 - (2 * overlap + 1) / (sizes + 1)


def match(costs: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cheapest one-to-one pairs of proposals and classes in each image.

    Args:
        costs: [B, N, K].
        present: bool [B, K], the classes that have a pixel.

    Returns:
        Image, proposal and class of each pair, int64 [pairs].
    """
    from scipy.optimize import linear_sum_assignment

    pairs: list[tuple[int, int, int]] = []
    # what is not a number must come out as such, not as an exception of the matching
    finite = torch.nan_to_num(costs).cpu()
    for number, (of_image, known) in enumerate(zip(finite, present.cpu(), strict=True)):
        classes = known.nonzero().flatten()
        rows, columns = linear_sum_assignment(of_image[:, classes].numpy())
        pairs += [(number, int(n), int(classes[c])) for n, c in zip(rows, columns, strict=True)]
    image, proposal, label = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3).to(costs.device).unbind(1)
    return image, proposal, label
