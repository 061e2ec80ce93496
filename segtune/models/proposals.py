"""From proposed masks, each with its class, to logits of classes.

A pixel's score for a class is the sum over proposals of P(class) x P(pixel in mask), as in MaskFormer's
semantic inference; its logarithm is the logit, so that cross entropy and Dice train it like any other
network's output.

Source
    Cheng et al., Per-Pixel Classification is Not All You Need for Semantic Segmentation, 2021,
    section 3.4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segtune.types import Proposals


def combine(proposals: Proposals) -> Tensor:
    """Proposals to logits of classes.

    Args:
        proposals: N masks [B, N, h, w], each with K + 1 class logits.

    Returns:
        log sum_n P_n(class) P_n(pixel in mask), [B, K, h, w], in float32 or wider.
    """
    class_logits, mask_logits = proposals.class_logits, proposals.mask_logits
    device = mask_logits.device
    with torch.autocast(device.type if device.type != "meta" else "cpu", enabled=False):
        wide = torch.promote_types(mask_logits.dtype, torch.float32)
        classes = class_logits.to(wide).softmax(dim=-1)[..., :-1]  # [B, N, K]
        inside = F.logsigmoid(mask_logits.to(wide))
        # Relative to each pixel's largest: where all masks are far from a pixel, nothing vanishes.
        largest = inside.amax(dim=1, keepdim=True).detach()  # [B, 1, H, W]
        scores = torch.einsum("bnk,bnhw->bkhw", classes, (inside - largest).exp())
        return scores.clamp_min(torch.finfo(wide).tiny).log() + largest
