"""Share of both surfaces that lies within a tolerance of the other one, in millimetres.

The tolerance is `data.volume.tolerance`. The surface is the region's outermost voxels. Computed by MONAI.

Source: Nikolov et al., "Clinically Applicable Segmentation of Head and Neck Anatomy for Radiotherapy", 2021.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segtune.metrics.surface import surface_metric


def volume_surface_dice(
    prediction: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    tolerance: float,
) -> float:
    """The normalised surface Dice.

    Args:
        prediction: [D, H, W].
        mask: [D, H, W]; not empty together with the prediction.
        spacing: millimetres between voxels along each axis.
        tolerance: millimetres.

    Returns:
        Fraction in [0, 1]; 0 where one of the two is empty.

    Raises:
        MissingExtraError: MONAI is not installed.
    """
    if not prediction.any() or not mask.any():
        return 0.0
    return surface_metric(
        "compute_surface_dice", prediction, mask, class_thresholds=[tolerance], spacing=spacing
    )
