"""Counts what the mask files of a data set hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segtune.data.base import Colour, Origin
from segtune.data.files import MaskFile, ReadMask, read_mask_file
from segtune.data.masks import file_colours, name_of, pack_colour, pack_colours
from segtune.data.remembered import remember
from segtune.errors import DataError

KEPT_COLOURS = 4096
"""Colours of one mask that are kept, the most frequent first."""


@dataclass(frozen=True, kw_only=True)
class MaskSummary:
    """What one mask file holds."""

    path: Path
    size: tuple[int, int]
    values: Mapping[int, int]
    """Grey value or palette index -> pixels; of colour files that are grey all over the grey value."""
    colours: Mapping[int, int]
    """0xRRGGBB -> pixels, of colour and palette files."""
    palette: tuple[Colour, ...] | None
    is_colour: bool
    """Whether the file holds colours that are not grey."""
    lossy: bool


@dataclass(kw_only=True)
class Scan:
    """The summaries of all masks that could be read, added up."""

    masks: list[MaskSummary]
    total: int
    """Masks of the data set; fewer may have been looked at."""
    root: Path
    values: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for mask in self.masks:
            self.values.update(mask.values)

    @property
    def looked_at(self) -> str:
        """How many masks were looked at, as text."""
        if len(self.masks) == self.total:
            return f"all {self.total} masks" if self.total > 1 else "the only mask"
        return f"{len(self.masks)} of {self.total} masks"

    @property
    def colours(self) -> Counter[int]:
        """0xRRGGBB -> pixels, grey files included."""
        counts: Counter[int] = Counter()
        for mask in self.masks:
            if mask.is_colour or mask.palette is not None:
                counts.update(mask.colours)
            else:
                counts.update({pack_colour((v, v, v)): n for v, n in mask.values.items() if v <= 255})
        return counts

    def files_with(self, value: int) -> tuple[str, ...]:
        """Names of the masks that hold a value."""
        return tuple(
            mask.path.relative_to(self.root).as_posix() for mask in self.masks if value in mask.values
        )


def summarise(path: Path, read: ReadMask = read_mask_file) -> MaskSummary | DataError:
    """What a mask file holds, or the error that reading it raises."""
    try:
        file = read(path)
    except DataError as error:
        return error
    values, colours, is_colour = _count(file)
    return MaskSummary(
        path=path,
        size=(file.values.shape[0], file.values.shape[1]),
        values=values,
        colours=colours,
        palette=file.palette,
        is_colour=is_colour,
        lossy=file.lossy,
    )


def _count(file: MaskFile) -> tuple[dict[int, int], dict[int, int], bool]:
    if file.values.ndim == 2:
        counts = np.bincount(file.values.ravel())
        values = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
        colours: dict[int, int] = {}
        if file.palette is not None:
            table = [*file.palette, *[(0, 0, 0)] * 256]
            for value, pixels in values.items():
                code = pack_colour(table[value])
                colours[code] = colours.get(code, 0) + pixels
        return values, colours, False
    wide = file.values.astype(np.int16)
    spread = wide.max(axis=2) - wide.min(axis=2)
    # JPEG tints grey a little; anything else is exact.
    tint = 24 if file.lossy else 0
    if (spread > tint).mean() <= (0.001 if file.lossy else 0.0):
        counts = np.bincount(file.values[:, :, 0].ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}, {}, False
    packed, pixels_each = np.unique(pack_colours(file_colours(file)), return_counts=True)
    order = np.argsort(-pixels_each, kind="stable")[:KEPT_COLOURS]
    return {}, {int(packed[i]): int(pixels_each[i]) for i in order}, True


def scan_masks(
    root: Path,
    paths: Sequence[Path],
    *,
    at_most: int | None = None,
    read: ReadMask = read_mask_file,
    cache: bool = False,
) -> Scan:
    """Counts what masks hold.

    Args:
        root: the data's folder.
        paths: every mask.
        at_most: look at so many only, spread evenly.
        read: takes what is stored out of a mask file.
        cache: whether files that are as they were at an earlier scan are not opened again.

    Raises:
        DataError: no mask can be read.
    """
    chosen = list(paths)
    if at_most is not None and len(paths) > at_most:
        chosen = [paths[i * len(paths) // at_most] for i in range(at_most)]
    name = name_of(read)
    results = remember(
        root,
        "scan" if cache and name is not None else None,
        chosen,
        origin=lambda path: Origin((path,), name or ""),
        make=lambda path: summarise(path, read),
        dump=_to_values,
        load=_from_values,
    )
    masks = [result for result in results if isinstance(result, MaskSummary)]
    if not masks:
        error = next(result for result in results if isinstance(result, DataError))
        raise DataError(f"none of the {len(paths)} masks can be read, e.g. {error.message}", hint=error.hint)
    return Scan(masks=masks, total=len(paths), root=root)


def _to_values(summary: MaskSummary | DataError) -> dict[str, Any] | None:
    # What could not be read may be readable the next time.
    return None if isinstance(summary, DataError) else {name: getattr(summary, name) for name in _PLAIN}


def _from_values(path: Path, values: dict[str, Any]) -> MaskSummary:
    palette = values["palette"]
    height, width = values["size"]
    return MaskSummary(
        path=path,
        size=(height, width),
        values={int(value): int(count) for value, count in values["values"].items()},
        colours={int(colour): int(count) for colour, count in values["colours"].items()},
        palette=None if palette is None else tuple((r, g, b) for r, g, b in palette),
        is_colour=bool(values["is_colour"]),
        lossy=bool(values["lossy"]),
    )


_PLAIN = ("size", "values", "colours", "palette", "is_colour", "lossy")
"""Fields of a summary that JSON holds."""
