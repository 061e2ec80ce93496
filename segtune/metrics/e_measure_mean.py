"""E-measure of foreground maps (agreement with the mask), averaged over 256 thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segtune.metrics.e_measure import mean_curve

if TYPE_CHECKING:
    from segtune.metrics.saliency import SaliencyTally


def e_measure_mean(tally: SaliencyTally) -> float:
    """E-measure averaged over 256 thresholds; NaN where no image counts."""
    return float(mean_curve(tally).mean())
