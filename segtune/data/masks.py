"""Turns what mask files store into class maps: indices, palettes, colours, black and white.

In memory the ignored value is always 255, whatever the files use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segtune.data.base import Colour, Image, Mask, Origin, Sample
from segtune.data.channels import ChannelRule
from segtune.data.files import PLAIN, MaskFile, ReadMask, read_image, read_mask_file
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX

OUTSIDE = -1
NEAREST_LIMIT = 48.0
"""Largest distance, in RGB units, at which a colour of a lossy file still counts as a class's."""

Coding = Literal["index", "palette", "rgb", "binary"]


def pack_colours(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Colours [..., 3] as single numbers 0xRRGGBB."""
    wide = colours.astype(np.int32)
    packed: NDArray[np.int32] = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    return packed


def unpack_colour(number: int) -> Colour:
    """The colour of a number 0xRRGGBB."""
    return number >> 16, number >> 8 & 255, number & 255


def pack_colour(colour: Colour) -> int:
    """A colour as a number 0xRRGGBB."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def file_colours(file: MaskFile) -> NDArray[np.uint8]:
    """Colours [H, W, 3] of any mask file; grey is repeated."""
    if file.values.ndim == 3:
        return file.values
    if file.palette is not None:
        table = np.zeros((256, 3), np.uint8)
        table[: len(file.palette)] = file.palette
        colours: NDArray[np.uint8] = table[file.values]
        return colours
    grey = np.clip(file.values, 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def file_grey(file: MaskFile) -> NDArray[Any]:
    """Grey values or palette indices [H, W] of any mask file; of colours the brightest channel."""
    if file.values.ndim == 2:
        return file.values
    brightest: NDArray[Any] = file.values.max(axis=2)
    return brightest


@dataclass(frozen=True, kw_only=True)
class MaskCoding:
    """How the mask files of a data set encode classes."""

    coding: Coding
    threshold: int = 127
    """Binary: values above are class 1."""
    values: Mapping[int, int] = field(default_factory=dict)
    """Index and palette: value in the file -> class or 255. Binary: values that are ignored -> 255."""
    colours: Mapping[Colour, int] = field(default_factory=dict)
    """RGB: colour in the file -> class or 255. Index: the same, for those files that are in true colour."""

    def decode(self, file: MaskFile) -> tuple[Mask, dict[str, int]]:
        """The class map of a mask file.

        Returns:
            Class map [H, W], and what in the file means no class: value -> number of pixels
            (those pixels are 255 in the class map).
        """
        if self.coding == "binary":
            grey = file_grey(file)
            mask = (grey > self.threshold).astype(np.uint8)
            for value in self.values:
                mask[grey == value] = IGNORE_INDEX
            return mask, {}
        if self.coding == "rgb" or (self.colours and file.values.ndim == 3):
            return self._decode_colours(file)
        if file.values.ndim == 3 and (file.values != file.values[:, :, :1]).any():
            colours = np.unique(pack_colours(file.values))
            return np.full(file.values.shape[:2], IGNORE_INDEX, np.uint8), {
                str(unpack_colour(int(c))): 0 for c in colours[:3]
            }
        stored = file.values if file.values.ndim == 2 else file.values[:, :, 0]
        classes = self._value_table[stored]
        outside: dict[str, int] = {}
        if (classes == OUTSIDE).any():
            found, counts = np.unique(stored[classes == OUTSIDE], return_counts=True)
            outside = {str(value): int(count) for value, count in zip(found, counts, strict=True)}
            classes = np.where(classes == OUTSIDE, IGNORE_INDEX, classes)
        return classes.astype(np.uint8), outside

    def __str__(self) -> str:
        """All of it, as text that is equal where the coding is."""
        return f"{self.coding} {self.threshold} {sorted(self.values.items())} {sorted(self.colours.items())}"

    @cached_property
    def _value_table(self) -> NDArray[np.int16]:
        table = np.full(65536, OUTSIDE, np.int16)
        for value, label in self.values.items():
            table[value] = label
        return table

    @cached_property
    def _colour_table(self) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        pairs = sorted((pack_colour(colour), label) for colour, label in self.colours.items())
        return np.array([p[0] for p in pairs], np.int32), np.array([p[1] for p in pairs], np.int16)

    def _decode_colours(self, file: MaskFile) -> tuple[Mask, dict[str, int]]:
        codes, labels = self._colour_table
        packed = pack_colours(file_colours(file))
        place = np.minimum(np.searchsorted(codes, packed), len(codes) - 1)
        mask = labels[place].astype(np.uint8)
        wrong = codes[place] != packed
        if not wrong.any():
            return mask, {}
        strangers, inverse, counts = np.unique(packed[wrong], return_inverse=True, return_counts=True)
        replacement = np.full(len(strangers), IGNORE_INDEX, np.uint8)
        strange = np.ones(len(strangers), np.bool_)
        if file.lossy:
            targets = np.array([unpack_colour(int(code)) for code in codes], np.float32)
            for i, stranger in enumerate(strangers):
                distance = np.linalg.norm(targets - np.array(unpack_colour(int(stranger))), axis=1)
                if distance.min() <= NEAREST_LIMIT:
                    replacement[i], strange[i] = labels[distance.argmin()], False
        mask[wrong] = replacement[inverse]
        order = np.argsort(-counts[strange], kind="stable")
        return mask, {str(unpack_colour(int(strangers[strange][i]))): int(counts[strange][i]) for i in order}


@dataclass(frozen=True, kw_only=True)
class FileReader:
    """Reads the samples of a data set whose images, and as a rule masks, are ordinary image files."""

    coding: MaskCoding
    tolerant: bool = False
    """Whether mask values that mean no class are ignored instead of refused."""
    read: ReadMask = read_mask_file
    """Takes what is stored out of a mask file; other than this one where masks are no image files."""
    channels: ChannelRule = PLAIN

    def origin(self, sample: Sample) -> Origin | None:
        """The files of the sample, and how they are read."""
        files = (sample.image,) if sample.mask is None else (sample.image, sample.mask)
        return None if self._recipe is None else Origin(files, self._recipe)

    @cached_property
    def _recipe(self) -> str | None:
        name = name_of(self.read)
        return None if name is None else f"{name} {self.channels} {self.coding} {self.tolerant}"

    def image(self, sample: Sample) -> Image:
        """[H, W, C], uint8, uint16 or float32."""
        return read_image(sample.image, self.channels)

    def mask(self, sample: Sample) -> Mask:
        """[H, W] class map.

        Raises:
            DataError: the file cannot be read, or holds values that mean no class.
        """
        assert sample.mask is not None, f"{sample.name} has no mask"
        mask, outside = self.coding.decode(self.read(sample.mask))
        if outside and not self.tolerant:
            raise outside_error(sample.mask, outside)
        return mask


def name_of(read: ReadMask) -> str | None:
    """What names a function in any process; None where its name does not tell all of what it does."""
    name = getattr(read, "__qualname__", "<")
    return None if "<" in name or hasattr(read, "__self__") else f"{read.__module__}.{name}"


def outside_error(path: Path, outside: Mapping[str, int]) -> DataError:
    """The error for a mask with values that mean no class."""
    return DataError(
        f"{path}: the mask holds {describe_outside(outside)}, which mean no class",
        hint="name every class, map the values with data.values, or ignore them with "
        "data.allow=[value-outside-classes]",
    )


def describe_outside(outside: Mapping[str, int]) -> str:
    """The values that mean no class, as text."""
    shown = ", ".join(list(outside)[:4])
    kind = "colours" if shown.startswith("(") else "values"
    more = f" and {len(outside) - 4} more" if len(outside) > 4 else ""
    return f"the {kind} {shown}{more}"
