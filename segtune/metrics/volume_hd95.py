"""Distance in millimetres that 95 % of the surface points keep to the other surface; lower is better.

The 95th percentile of the distances from each surface to the other, and the larger of the two. The surface
is the region's outermost voxels. Computed by MONAI.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segtune.metrics.surface import surface_metric
from segtune.metrics.volume_scores import diagonal


def volume_hd95(
    prediction: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    tolerance: float,
) -> float:
    """The 95th percentile of the Hausdorff distance.

    Args:
        prediction: [D, H, W].
        mask: [D, H, W]; not empty together with the prediction.
        spacing: millimetres between voxels along each axis.
        tolerance: not used.

    Returns:
        Millimetres; the volume's diagonal where one of the two is empty.

    Raises:
        MissingExtraError: MONAI is not installed.
    """
    if not prediction.any() or not mask.any():
        return diagonal(mask.shape, spacing)
    return surface_metric("compute_hausdorff_distance", prediction, mask, percentile=95, spacing=spacing)
