"""Mean absolute error of foreground maps: distance between probability and mask; lower is better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segtune.metrics.saliency import SaliencyTally


def mean_absolute_error(tally: SaliencyTally) -> float:
    """Mean over the images; NaN where no image counts."""
    return math.fsum(tally.errors) / len(tally.errors) if tally.errors else math.nan
