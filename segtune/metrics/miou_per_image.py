"""Mean IoU of single images, averaged over images; one bad image weighs as much as any other.

In each image the classes count that occur in its mask or its prediction. An image without a pixel
that counts is left out.
"""

from __future__ import annotations

import math

from segtune.metrics.tally import Tally


def miou_per_image(tally: Tally) -> float:
    """Mean over the images of each image's mean IoU."""
    scores = []
    for intersection, union in zip(tally.intersections, tally.unions, strict=True):
        present = union > 0
        if present.any():
            scores.append(float((intersection[present] / union[present]).mean()))
    # fsum rounds once, so that the order of the images does not show in the last digits.
    return math.fsum(scores) / len(scores) if scores else float("nan")
