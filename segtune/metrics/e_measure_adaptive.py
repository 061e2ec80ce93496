"""E-measure of foreground maps (agreement with the mask) at twice the mean of each map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segtune.metrics.saliency import SaliencyTally


def e_measure_adaptive(tally: SaliencyTally) -> float:
    """E-measure at twice the mean of each map; NaN where no image counts."""
    return math.fsum(tally.e_adaptive) / len(tally.e_adaptive) if tally.e_adaptive else math.nan
