"""Scores by name: looks metrics up in the registry and applies them to the counts."""

from __future__ import annotations

import math
from collections.abc import Iterable

from segtune.metrics import METRICS
from segtune.metrics.tally import Tally


def compute_scores(tally: Tally, names: Iterable[str] | None = None) -> dict[str, float]:
    """Applies metrics to the counts of an evaluation.

    Args:
        tally: counts of the evaluation.
        names: metrics of the registry; None for every one that is defined for these counts.

    Returns:
        Fractions in [0, 1] by name; a metric that was asked for by name and is not defined
        (the foreground's where there are more than two classes) is NaN.

    Raises:
        UnknownNameError: there is no metric of that name.
    """
    if names is not None:
        return {name: METRICS.load(name)(tally) for name in names}
    scores = {name: METRICS.load(name)(tally) for name in METRICS}
    return {name: score for name, score in scores.items() if not math.isnan(score)}
