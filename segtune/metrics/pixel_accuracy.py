"""Pixel accuracy: share of all pixels that are right; large classes decide it."""

from __future__ import annotations

from segtune.metrics.tally import Tally


def pixel_accuracy(tally: Tally) -> float:
    """Share of the pixels that count whose class is right."""
    total = int(tally.confusion.sum())
    return int(tally.confusion.trace()) / total if total else float("nan")
