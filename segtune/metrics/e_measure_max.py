"""E-measure of foreground maps (agreement with the mask) at the threshold that suits the whole set best."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segtune.metrics.e_measure import mean_curve

if TYPE_CHECKING:
    from segtune.metrics.saliency import SaliencyTally


def e_measure_max(tally: SaliencyTally) -> float:
    """E-measure at the threshold that suits the whole set best; NaN where no image counts."""
    return float(mean_curve(tally).max())
