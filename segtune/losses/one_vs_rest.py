"""Each class against all others, for losses that are written for a foreground."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def one_vs_rest(logits: Tensor, masks: Tensor, ignore_index: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The logit of each class against the rest, and where the class is.

    The sigmoid of such a logit is the softmax probability of the class. Of two classes there is only
    the second, the foreground, whose logit is the difference of both.

    Args:
        logits: [B, K, H, W], any float type.
        masks: int64 [B, H, W].
        ignore_index: mask value that does not count.

    Yields:
        float32 [B, H, W], and float32 [B, H, W] of 0 and 1; 0 where a pixel does not count.
    """
    logits = logits.float()
    counts = masks != ignore_index
    for k in range(1 if logits.shape[1] == 2 else 0, logits.shape[1]):
        others = torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1)
        yield logits[:, k] - others.logsumexp(dim=1), ((masks == k) & counts).float()
