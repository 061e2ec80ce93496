"""Makes sure that what a mask file stores can be class numbers or colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtune.errors import DataError


def mask_values(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """The stored values of a mask: [H, W] uint8 or uint16, or [H, W, 3] uint8 colours.

    Args:
        array: of the file, as it was decoded.
        path: of the file, for messages.

    Raises:
        DataError: the values can be neither class numbers nor colours.
    """
    if array.ndim == 3 and array.shape[2] in (1, 2):
        array = array[:, :, 0]
    if array.ndim == 3:
        if array.shape[2] not in (3, 4) or array.dtype != np.uint8:
            raise DataError(
                f"{path}: the mask has {array.shape[2]} channels of type {array.dtype}",
                hint="masks have one channel (class numbers) or are 8-bit RGB (colours)",
            )
        return np.ascontiguousarray(array[:, :, :3])
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or (array != np.round(array)).any():
            raise DataError(
                f"{path}: the mask holds fractions", hint="save masks as whole numbers, one for each class"
            )
        if np.abs(array).max(initial=0) < 2**31:
            array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.min(initial=0) < 0 or array.max(initial=0) > 65535:
        raise DataError(
            f"{path}: the mask holds values outside of 0..65535",
            hint="save masks as whole numbers, one for each class",
        )
    return array if array.dtype == np.uint8 else array.astype(np.uint16)
