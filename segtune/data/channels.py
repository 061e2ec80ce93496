"""What channels of an image file reach the model, and which of its values are black and white."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtune.data.base import Image
from segtune.data.settings import DataSettings
from segtune.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ChannelRule:
    """Turns what an image file stores into an image.

    Args:
        bands: channels to take, counted from 0; None for the usual: grey is repeated three times, an alpha
            channel is dropped, and of more than four channels all are taken.
        value_range: values that become 0 and 1; None for the whole range of the type.
        expected: how many channels every image must give, or None.
    """

    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    expected: int | None = None

    def num_channels(self, stored: int) -> int:
        """How many channels an image of a file with so many has."""
        return len(self.bands) if self.bands is not None else max(stored, 3) if stored != 4 else 3

    def apply(self, array: NDArray[Any], path: Path) -> Image:
        """The image [H, W, C] of a file's array [H, W] or [H, W, C].

        Raises:
            DataError: the channels asked for are not there, are not as many as expected, or their values
                are no image's.
        """
        if array.ndim == 2:
            array = array[:, :, None]
        stored = array.shape[2]
        if self.bands is not None:
            if max(self.bands) >= stored:
                wanted = ",".join(map(str, self.bands))
                raise DataError(
                    f"{path}: data.bands={wanted}, but the image has {stored} channels",
                    hint=f"channels count from 0 to {stored - 1}",
                )
            array = array[:, :, list(self.bands)]
        elif stored <= 2:
            array = np.repeat(array[:, :, :1], 3, axis=2)
        elif stored == 4:
            array = array[:, :, :3]
        if self.expected is not None and array.shape[2] != self.expected:
            raise DataError(
                f"{path}: the image has {stored} channels, others give {self.expected}",
                hint="data.bands chooses the same channels of all, e.g. data.bands=0,1,2",
            )
        return np.ascontiguousarray(self._values(array, path))

    def _values(self, array: NDArray[Any], path: Path) -> NDArray[Any]:
        if array.dtype == np.bool_:
            array = array.astype(np.uint8) * np.uint8(255)
        if self.value_range is not None:
            low, high = self.value_range
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(f"{path}: the image holds values that are no numbers", hint="fill them in")
            scaled = (array.astype(np.float32) - np.float32(low)) / np.float32(high - low)
            clipped: NDArray[np.float32] = np.clip(scaled, 0, 1)
            return clipped
        if array.dtype in (np.uint8, np.uint16):
            return array
        low, high = array.min(), array.max()
        if array.dtype.kind in "iu" and low >= 0 and high <= 65535:
            return array.astype(np.uint16)
        if array.dtype.kind == "f" and low >= 0 and high <= 1:
            return array.astype(np.float32)
        raise DataError(
            f"{path}: values of type {array.dtype} from {low} to {high}",
            hint="data.value_range=LOW,HIGH says which values are black and white; without it images have 8 "
            "or 16 bits per channel, or fractions between 0 and 1",
        )


def channel_rule(settings: DataSettings) -> ChannelRule:
    """The rule that the settings state."""
    return ChannelRule(bands=settings.bands, value_range=settings.value_range)
