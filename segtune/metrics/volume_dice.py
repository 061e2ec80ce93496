"""Dice of a region in a whole volume, averaged over cases and regions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def volume_dice(prediction: NDArray[np.bool_], mask: NDArray[np.bool_], *_: Any) -> float:
    """Twice the voxels in both over the voxels of each.

    Args:
        prediction: [D, H, W].
        mask: [D, H, W]; not empty together with the prediction.

    Returns:
        Fraction in [0, 1].
    """
    both = np.count_nonzero(prediction & mask)
    return 2 * both / (np.count_nonzero(prediction) + np.count_nonzero(mask))
