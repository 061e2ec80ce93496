"""Balanced error rate: mean share of foreground and of background that is wrong; lower is better."""

from __future__ import annotations

from segtune.metrics.mean_ber import class_ber
from segtune.metrics.tally import Tally


def ber(tally: Tally) -> float:
    """BER of the foreground over the whole set; NaN unless two classes are all, both in the masks."""
    return float(class_ber(tally)[1]) if tally.num_classes == 2 else float("nan")
