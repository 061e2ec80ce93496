"""Guesses how masks encode classes from what all of them hold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from segtune.data.base import Colour
from segtune.data.description import Description
from segtune.data.masks import Coding, unpack_colour
from segtune.data.scan import MaskSummary, Scan
from segtune.data.settings import DataSettings
from segtune.types import IGNORE_INDEX

LARGEST_PLAIN_INDEX = 40
"""Values up to this are class numbers; above, what their distribution looks like decides."""
PLAIN = "grey values are class numbers"
LEVELS = "a few distant grey levels"


def choose_coding(scan: Scan, settings: DataSettings, description: Description) -> tuple[Coding, str]:
    """The coding of masks, and the reason as text."""
    if settings.masks != "auto":
        return settings.masks, "as stated"
    if settings.values is not None:
        return "index", "values are mapped as stated"
    if settings.threshold is not None:
        return "binary", "a threshold is stated"
    return _choose_colours(scan, description) or _choose_values(scan, settings)


def _choose_colours(scan: Scan, description: Description) -> tuple[Coding, str] | None:
    """The coding where colours decide, or None where numbers do."""
    colour = [mask for mask in scan.masks if mask.is_colour]
    palette = [mask for mask in scan.masks if mask.palette is not None]
    if len(colour) == len(scan.masks):
        return "rgb", "true-colour files"
    if colour:
        kinds = {"true-colour": len(colour), "palette": len(palette)}
        kinds["grey"] = len(scan.masks) - sum(kinds.values())
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        return "rgb", f"{counts} files: colours decide"
    if _palettes_disagree(palette):
        return "rgb", "palette files whose palettes differ: colours decide"
    stated = {*(description.colours or ()), *description.ignored_colours}
    if len(palette) == len(scan.masks) and {unpack_colour(code) for code in scan.colours} <= stated:
        return "rgb", "palette files with the colours of dataset.yaml"
    return None


def _choose_values(scan: Scan, settings: DataSettings) -> tuple[Coding, str]:
    """The coding of files whose grey values or palette indices decide."""
    num_stated = len(settings.classes) if settings.classes else 0
    present = sorted(scan.values)
    low, high = present[0], present[-1]
    if present in ([0, 255], [255]) and num_stated <= 2:
        return "binary", "masks hold 0 and 255 only"
    if all(mask.palette is not None for mask in scan.masks):
        return "palette", "palette files, the index is the class"
    inside = [value for value in present if value not in (IGNORE_INDEX, settings.ignore_index)]
    if num_stated > 2 or max(inside, default=0) <= LARGEST_PLAIN_INDEX:
        return "index", PLAIN
    if grey_levels(scan, settings):
        return "index", LEVELS
    if len(present) == 2:
        return "binary", f"masks hold {low} and {high} only"
    return _two_ends(scan, low, high) or ("index", PLAIN)


def _two_ends(scan: Scan, low: int, high: int) -> tuple[Coding, str] | None:
    """Binary, where almost all pixels are close to the darkest or the brightest value."""
    margin = (high - low) // 10
    pixels = sum(scan.values.values())
    near_low = sum(count for value, count in scan.values.items() if value <= low + margin)
    near_high = sum(count for value, count in scan.values.items() if value >= high - margin)
    share = (near_low + near_high) / pixels
    if share < 0.9 or near_high / pixels < 0.001:
        return None
    # Rounded down, so that 100% means all of them.
    near = f"{int(share * 1000) / 10:g}% of pixels within {margin} of {low} or {high}"
    return "binary", f"{len(scan.values)} grey values, {near}: soft edges or noise"


def grey_levels(scan: Scan, settings: DataSettings) -> list[int]:
    """The levels of masks that use a few distant grey values (0, 85, 170, 255) for classes, or none."""
    levels = sorted(scan.values)
    if settings.ignore_index != IGNORE_INDEX:
        levels = [level for level in levels if level != settings.ignore_index]
    if settings.classes is not None or any(mask.lossy for mask in scan.masks):
        return []
    pixels = sum(scan.values.values())
    distant = all(b - a >= 8 for a, b in itertools.pairwise(levels))
    common = all(scan.values[level] / pixels >= 0.0001 for level in levels)
    return levels if 3 <= len(levels) <= 16 and distant and common else []


def _palettes_disagree(masks: Sequence[MaskSummary]) -> bool:
    """Whether two files use the same index for different colours."""
    seen: dict[int, Colour] = {}
    for mask in masks:
        assert mask.palette is not None
        for value in mask.values:
            colour = mask.palette[value] if value < len(mask.palette) else (0, 0, 0)
            if seen.setdefault(value, colour) != colour:
                return True
    return False
