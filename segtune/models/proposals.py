"""Masks with classes to logits: what every model that proposes masks ends in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def combine(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Proposals to logits of classes.

    Args:
        class_logits: [B, N, K + 1], the last for "no object".
        mask_logits: [B, N, H, W].

    Returns:
        log sum_n P_n(class) P_n(pixel in mask), [B, K, H, W], in float32 or wider.
    """
    device = mask_logits.device
    with torch.autocast(device.type if device.type != "meta" else "cpu", enabled=False):
        wide = torch.promote_types(mask_logits.dtype, torch.float32)
        classes = class_logits.to(wide).softmax(dim=-1)[..., :-1]  # [B, N, K]
        inside = F.logsigmoid(mask_logits.to(wide))
        # Relative to each pixel's largest: where all masks are far from a pixel, nothing vanishes.
        largest = inside.amax(dim=1, keepdim=True).detach()  # [B, 1, H, W]
        scores = torch.einsum("bnk,bnhw->bkhw", classes, (inside - largest).exp())
        return scores.clamp_min(torch.finfo(wide).tiny).log() + largest
