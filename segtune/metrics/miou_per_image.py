"""Mean IoU of single images, averaged over images; one bad image weighs as much as any other.

In each image the classes count that occur in its mask or its prediction. An image without a pixel
that counts is left out.
"""

from __future__ import annotations

import math

from segtune.metrics.tally import Tally


def image_scores(tally: Tally) -> list[float]:
    """Mean IoU of each image, in the order of `tally.names`; NaN where no pixel counts."""
    scores = []
    for intersection, union in zip(tally.intersections, tally.unions, strict=True):
        present = union > 0
        score = (intersection[present] / union[present]).mean() if present.any() else math.nan
        scores.append(float(score))
    return scores


def miou_per_image(tally: Tally) -> float:
    """Mean over the images of each image's mean IoU."""
    scores = [score for score in image_scores(tally) if not math.isnan(score)]
    # fsum rounds once, so that the order of the images does not show in the last digits.
    return math.fsum(scores) / len(scores) if scores else math.nan
