"""Finds out how the masks of a data set encode classes, from what all of them hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segtune.data.base import Classes, Colour, Finding, Severity
from segtune.data.description import Description
from segtune.data.files import MaskFile, map_threads, read_mask_file
from segtune.data.masks import Coding, MaskCoding, file_colours, pack_colour, pack_colours, unpack_colour
from segtune.data.palette import KNOWN_PALETTES, default_palette
from segtune.data.settings import DataSettings
from segtune.errors import DataError, UsageError
from segtune.types import IGNORE_INDEX

MAX_CLASSES = 254
MAX_COLOURS = 64
"""More colours than this without a stated palette are taken for a photo or a noisy file."""
LARGEST_PLAIN_INDEX = 40
"""Values up to this are class numbers; above, what their distribution looks like decides."""
KEPT_COLOURS = 4096
NUM_SAMPLED = 64
"""Masks that are looked at where the classes are stated already."""


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


@dataclass(frozen=True, kw_only=True)
class Understanding:
    """How masks are to be read, and why."""

    coding: MaskCoding
    classes: Classes
    evidence: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    ignored_value: int | None = None
    """The value in the files that counts for nothing, where the coding has one."""


@dataclass(kw_only=True)
class _Scan:
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
        if len(self.masks) == self.total:
            return f"all {self.total} masks" if self.total > 1 else "the only mask"
        return f"{len(self.masks)} of {self.total} masks"

    @property
    def colours(self) -> Counter[int]:
        counts: Counter[int] = Counter()
        for mask in self.masks:
            if mask.is_colour or mask.palette is not None:
                counts.update(mask.colours)
            else:
                counts.update({pack_colour((v, v, v)): n for v, n in mask.values.items() if v <= 255})
        return counts

    def files_with(self, value: int) -> tuple[str, ...]:
        return tuple(
            mask.path.relative_to(self.root).as_posix() for mask in self.masks if value in mask.values
        )


def summarise(path: Path) -> MaskSummary | DataError:
    """What a mask file holds, or the error that reading it raises."""
    try:
        file = read_mask_file(path)
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


def understand(
    root: Path, paths: Sequence[Path], settings: DataSettings, description: Description
) -> Understanding:
    """Finds the coding and the classes of a data set's masks.

    Args:
        root: the data's folder, for file names in messages.
        paths: every mask.
        settings: with the description merged in; what they state is not guessed.
        description: for its colours.

    Raises:
        DataError: no mask can be read, or they make no sense as class maps.
        UsageError: the settings contradict each other or the masks.
    """
    known_classes = settings.classes is not None or description.colours is not None
    looked_at = _sample(paths) if known_classes else list(paths)
    results = map_threads(summarise, looked_at)
    masks = [result for result in results if isinstance(result, MaskSummary)]
    errors = [result for result in results if isinstance(result, DataError)]
    if not masks:
        raise DataError(
            f"none of the {len(paths)} masks can be read, e.g. {errors[0].message}", hint=errors[0].hint
        )
    scan = _Scan(masks=masks, total=len(paths), root=root)
    coding, reason = _choose(scan, settings, description)
    if coding == "rgb":
        return _rgb(scan, settings, description, reason)
    if coding == "binary":
        return _binary(scan, settings, description, reason)
    return _index(coding, scan, settings, description, reason)


def _sample(paths: Sequence[Path]) -> list[Path]:
    if len(paths) <= NUM_SAMPLED:
        return list(paths)
    return [paths[i * len(paths) // NUM_SAMPLED] for i in range(NUM_SAMPLED)]


def _choose(scan: _Scan, settings: DataSettings, description: Description) -> tuple[Coding, str]:
    if settings.masks != "auto":
        return settings.masks, "as stated"
    if settings.values is not None:
        return "index", "values are mapped as stated"
    if settings.threshold is not None:
        return "binary", "a threshold is stated"
    colour = [mask for mask in scan.masks if mask.is_colour]
    palette = [mask for mask in scan.masks if mask.palette is not None]
    if colour:
        if len(colour) == len(scan.masks):
            return "rgb", "true-colour files"
        return "rgb", (
            f"{len(colour)} true-colour files, {len(palette)} palette files, "
            f"{len(scan.masks) - len(colour) - len(palette)} grey files: colours decide"
        )
    if _palettes_disagree(palette):
        return "rgb", "palette files whose palettes differ: colours decide"
    stated = len(settings.classes) if settings.classes else 0
    if set(scan.values) <= {0, IGNORE_INDEX} and IGNORE_INDEX in scan.values:
        return "binary", "masks hold 0 and 255 only"
    if len(palette) == len(scan.masks):
        return "palette", "palette files, the index is the class"
    return _choose_grey(scan, settings, stated)


def _choose_grey(scan: _Scan, settings: DataSettings, stated: int) -> tuple[Coding, str]:
    present = sorted(scan.values)
    low, high = present[0], present[-1]
    inside = [value for value in present if value not in (IGNORE_INDEX, settings.ignore_index)]
    if not inside or max(inside) <= max(LARGEST_PLAIN_INDEX, stated - 1):
        return "index", "grey values are class numbers"
    if len(present) == 2:
        return "binary", f"masks hold {low} and {high} only"
    if _grey_levels(scan.values, settings):
        return "index", "a few distant grey levels"
    margin = (high - low) // 10
    pixels = sum(scan.values.values())
    near_low = sum(n for v, n in scan.values.items() if v <= low + margin)
    near_high = sum(n for v, n in scan.values.items() if v >= high - margin)
    share = (near_low + near_high) / pixels
    if share >= 0.9 and near_high / pixels >= 0.001 and stated <= 2:
        shown = int(share * 1000) / 10
        return "binary", (
            f"{len(present)} grey values, {shown}% of pixels within {margin} of {low} or {high}: soft edges or noise"
        )
    return "index", "grey values are class numbers"


def _grey_levels(values: Mapping[int, int], settings: DataSettings) -> list[int]:
    """The levels of masks that use a few distant grey values (0, 85, 170, 255) for classes, or none."""
    levels = sorted(values)
    if settings.ignore_index != IGNORE_INDEX:
        levels = [level for level in levels if level != settings.ignore_index]
    pixels = sum(values.values())
    distant = all(b - a >= 8 for a, b in zip(levels, levels[1:], strict=False))
    common = all(values[level] / pixels >= 0.001 for level in levels)
    if 3 <= len(levels) <= 16 and distant and common and not settings.classes:
        return levels
    return []


def _palettes_disagree(masks: Sequence[MaskSummary]) -> bool:
    seen: dict[int, Colour] = {}
    for mask in masks:
        assert mask.palette is not None
        for value in mask.values:
            if (
                value < len(mask.palette)
                and seen.setdefault(value, mask.palette[value]) != mask.palette[value]
            ):
                return True
    return False


def _binary(scan: _Scan, settings: DataSettings, description: Description, reason: str) -> Understanding:
    names = settings.classes or ("background", "foreground")
    if len(names) != 2:
        raise UsageError(
            f"binary masks have 2 classes, but {len(names)} are named: {', '.join(names)}",
            hint="name background and foreground, or state data.masks=index",
        )
    values = scan.values or Counter({max(unpack_colour(code)): n for code, n in scan.colours.items()})
    low, high = min(values), max(values)
    threshold = settings.threshold
    if threshold is None:
        threshold = 127 if low <= 127 < high and 192 <= high <= 255 else (low + high) // 2
    ignored = {}
    if settings.ignore_index != IGNORE_INDEX:
        ignored = {settings.ignore_index: IGNORE_INDEX}
    text = f"{reason}: binary, foreground above {threshold}"
    if ignored:
        text += f", {settings.ignore_index} ignored"
    return Understanding(
        coding=MaskCoding(coding="binary", threshold=threshold, values=ignored),
        classes=Classes(names=names, palette=description.colours or ((0, 0, 0), (230, 60, 60))),
        evidence=(f"{text} (from {scan.looked_at})",),
        ignored_value=settings.ignore_index if ignored else None,
    )


def _index(
    coding: Coding, scan: _Scan, settings: DataSettings, description: Description, reason: str
) -> Understanding:
    if any(mask.is_colour for mask in scan.masks):
        files = [mask.path.name for mask in scan.masks if mask.is_colour]
        raise UsageError(
            f"data.masks={coding}, but {len(files)} masks hold colours, e.g. {files[0]}",
            hint="state data.masks=rgb, or leave it at auto",
        )
    findings: list[Finding] = []
    names = settings.classes
    ignored = {IGNORE_INDEX, settings.ignore_index}
    present = sorted(set(scan.values) - ignored)
    levels = _grey_levels(scan.values, settings) if reason == "a few distant grey levels" else []
    text = f"{reason}"
    if settings.values is not None:
        mapping = dict(settings.values)
        largest = max((label for label in mapping.values() if label != IGNORE_INDEX), default=0)
        num_classes = len(names) if names else largest + 1
        too_large = sorted(label for label in mapping.values() if num_classes <= label != IGNORE_INDEX)
        if too_large or min(mapping.values(), default=0) < 0 or min(mapping, default=0) < 0:
            raise UsageError(
                f"data.values maps to {too_large or 'a negative number'}, but there are {num_classes} classes",
                hint=f"classes are 0..{num_classes - 1}, and {IGNORE_INDEX} is ignored",
            )
        if max(mapping, default=0) > 65535:
            raise UsageError(f"data.values: {max(mapping)} is no mask value", hint="values are 0..65535")
    elif levels:
        mapping = {level: label for label, level in enumerate(levels)}
        num_classes = len(levels)
        text += f" ({', '.join(map(str, levels))}), each one class"
        findings.append(
            Finding(
                severity=Severity.WARNING,
                code="grey-levels",
                message=f"the grey levels {', '.join(map(str, levels))} are read as {num_classes} classes",
                hint="if this is wrong, state data.masks or data.values",
            )
        )
    else:
        shift = settings.ignore_index if settings.ignore_index < max(present, default=0) else None
        largest = max(present, default=0) - (shift is not None)
        num_classes = len(names) if names else max(largest + 1, 2)
        limit = min(num_classes + (shift is not None), 65536)
        mapping = {
            value: value - (shift is not None and value > shift)
            for value in range(limit)
            if value not in ignored
        }
        mapping = {value: label for value, label in mapping.items() if label < num_classes}
        if shift is not None:
            text += f", values above the ignored {shift} move down by one"
        if names is None:
            findings += _doubts(scan, present, num_classes)
    if num_classes > MAX_CLASSES:
        raise DataError(
            f"{scan.files_with(present[-1])[0]}: the mask value {present[-1]} would make {num_classes} classes",
            hint="are these instance numbers, or photos? At most 254 classes are supported; "
            "map the values with data.values, or state data.masks",
        )
    for value in ignored:
        mapping.setdefault(value, IGNORE_INDEX)
    seen = sorted(ignored & set(scan.values))
    shown = _ranges(present)
    text += f": values {shown}" + (f", {', '.join(map(str, seen))} ignored" if seen else "")
    if any(mask.lossy for mask in scan.masks):
        lossy = tuple(m.path.relative_to(scan.root).as_posix() for m in scan.masks if m.lossy)
        findings.append(
            Finding(
                severity=Severity.WARNING,
                code="lossy-masks",
                message=f"{len(lossy)} masks with class numbers are stored with loss (JPEG, WebP): "
                "numbers at edges are likely wrong",
                files=lossy,
                hint="save masks as PNG",
            )
        )
    palette = description.colours or _file_palette(scan, mapping, num_classes) or default_palette(num_classes)
    if len(palette) != num_classes:
        raise UsageError(
            f"dataset.yaml gives {len(palette)} colours for {num_classes} classes",
            hint="give one for each class",
        )
    return Understanding(
        coding=MaskCoding(coding=coding, values=mapping),
        classes=Classes(names=names or tuple(f"class_{i}" for i in range(num_classes)), palette=palette),
        evidence=(f"{text} -> {num_classes} classes (from {scan.looked_at})",),
        findings=tuple(findings),
        ignored_value=settings.ignore_index if settings.values is None and not levels else None,
    )


def _doubts(scan: _Scan, present: list[int], num_classes: int) -> list[Finding]:
    if len(present) * 2 >= num_classes:
        return []
    largest = max(present, default=0)
    return [
        Finding(
            severity=Severity.WARNING,
            code="sparse-classes",
            message=f"the largest mask value {largest} makes {num_classes} classes, "
            f"but only {len(present)} values occur: {_ranges(present)}",
            files=scan.files_with(largest)[:20],
            hint="name the classes in dataset.yaml, or map the values with data.values",
        )
    ]


def _file_palette(scan: _Scan, mapping: Mapping[int, int], num_classes: int) -> tuple[Colour, ...] | None:
    palette = next((mask.palette for mask in scan.masks if mask.palette is not None), None)
    if palette is None:
        return None
    by_class = {label: palette[value] for value, label in mapping.items() if value < len(palette)}
    colours = tuple(by_class[label] for label in range(num_classes) if label in by_class)
    return colours if len(colours) == num_classes == len(set(colours)) else None


def _rgb(scan: _Scan, settings: DataSettings, description: Description, reason: str) -> Understanding:
    found = scan.colours
    colours = {unpack_colour(code) for code in found}
    ignored: tuple[Colour, ...] = tuple(description.ignored_colours)
    lossy = any(mask.lossy for mask in scan.masks)
    known = next((palette for palette in KNOWN_PALETTES if palette.matches(colours - set(ignored))), None)
    if description.colours is not None:
        palette, names = description.colours, settings.classes
        text = f"{len(palette)} colours from dataset.yaml"
    elif known is not None:
        palette, names = known.colours, settings.classes or known.names
        ignored += known.ignored
        text = f"{len(colours)} colours found, all of {known.title}"
        void = sorted(colours & set(known.ignored))
        if void:
            text += f" (of these ignored: {', '.join(map(str, void))})"
    elif lossy or len(colours) > MAX_COLOURS:
        kind = "lossy (JPEG) colour masks" if lossy else f"masks of {len(colours)} or more colours"
        raise DataError(
            f"{kind} need to be told what their colours mean",
            hint="write dataset.yaml beside the data: classes: {name: [r, g, b], ...}; "
            "for black and white masks state data.masks=binary",
        )
    else:
        palette = tuple(sorted(colours - set(ignored)))
        names = settings.classes
        text = f"{len(colours)} colours found, each one class"
    if len(palette) < 2:
        raise DataError(
            f"the masks hold the single colour {palette[0] if palette else None}",
            hint="two classes are needed at least; name them with their colours in dataset.yaml",
        )
    if names is not None and len(names) != len(palette):
        raise UsageError(
            f"{len(names)} classes are named, but the masks have {len(palette)} colours",
            hint="give each class its colour in dataset.yaml: classes: {name: [r, g, b], ...}",
        )
    if names is None:
        names = tuple(f"colour_{pack_colour(colour):06x}" for colour in palette)
    coding: dict[Colour, int] = dict.fromkeys(ignored, IGNORE_INDEX)
    coding |= {colour: label for label, colour in enumerate(palette)}
    return Understanding(
        coding=MaskCoding(coding="rgb", colours=coding),
        classes=Classes(names=tuple(names), palette=tuple(palette)),
        evidence=(f"{reason}: RGB-coded, {text} -> {len(palette)} classes (from {scan.looked_at})",),
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as text, runs drawn together: 0-3, 7, 9-11."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs[:12])
    return shown + (f" and {len(runs) - 12} more" if len(runs) > 12 else "") if runs else "none"
