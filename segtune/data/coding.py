"""Finds out how the masks of a data set encode classes, from what all of them hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segtune.data.base import Classes, Colour, Finding, Severity
from segtune.data.description import Description
from segtune.data.files import ReadMask, read_mask_file
from segtune.data.findings import file_finding
from segtune.data.guess import LEVELS, choose_coding, grey_levels
from segtune.data.masks import Coding, MaskCoding, pack_colour, unpack_colour
from segtune.data.palette import KNOWN_PALETTES, default_palette
from segtune.data.scan import Scan, scan_masks
from segtune.data.settings import DataSettings
from segtune.errors import DataError, UsageError
from segtune.types import IGNORE_INDEX

MAX_CLASSES = 254
MAX_COLOURS = 64
"""More colours than this without a stated palette are taken for a photo or a noisy file."""
NUM_SAMPLED = 64
"""Masks that are looked at where the classes are stated already."""


@dataclass(frozen=True, kw_only=True)
class Understanding:
    """How masks are to be read, and why."""

    coding: MaskCoding
    classes: Classes
    evidence: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    ignored_value: int | None = None
    """The value in the files that counts for nothing, where the coding has one."""


def understand(
    root: Path,
    paths: Sequence[Path],
    settings: DataSettings,
    description: Description,
    read: ReadMask = read_mask_file,
) -> Understanding:
    """Finds the coding and the classes of a data set's masks.

    Args:
        root: the data's folder, for file names in messages.
        paths: every mask.
        settings: with the description merged in; what they state is not guessed.
        description: for its colours.
        read: takes what is stored out of a mask file.

    Raises:
        DataError: no mask can be read, or they make no sense as class maps.
        UsageError: the settings contradict each other or the masks.
    """
    # Named classes need no count, unless the ignored value may be one of theirs.
    named = settings.classes is not None and settings.ignore_index >= len(settings.classes)
    scan = scan_masks(root, paths, at_most=NUM_SAMPLED if named else None, read=read, cache=settings.cache)
    coding, reason = choose_coding(scan, settings, description)
    if coding == "rgb":
        return _rgb(scan, settings, description, reason)
    if coding == "binary":
        return _binary(scan, settings, description, reason)
    return _index(coding, scan, settings, description, reason)


def _binary(scan: Scan, settings: DataSettings, description: Description, reason: str) -> Understanding:
    names = settings.classes or ("background", "foreground")
    if len(names) != 2:
        raise UsageError(
            f"binary masks have 2 classes, but {len(names)} are named: {', '.join(names)}",
            hint="name background and foreground, or state data.masks=index",
        )
    values = {*scan.values, *(max(unpack_colour(c)) for m in scan.masks for c in m.colours if m.is_colour)}
    # Masks that hold foreground alone say nothing of the background, which is 0 then.
    low, high = min(values) if len(values) > 1 else 0, max(values)
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
        classes=Classes(names=names, palette=description.colours or default_palette(2)),
        evidence=(f"{text} (from {scan.looked_at})",),
        ignored_value=settings.ignore_index if ignored else None,
    )


@dataclass(kw_only=True)
class _Mapping:
    """What the numbers in mask files mean."""

    values: dict[int, int]
    num_classes: int
    text: str = ""
    findings: list[Finding]


def _index(
    coding: Coding, scan: Scan, settings: DataSettings, description: Description, reason: str
) -> Understanding:
    colour = [mask.path for mask in scan.masks if mask.is_colour]
    if colour:
        raise UsageError(
            f"data.masks={coding}, but {len(colour)} masks hold colours, e.g. {colour[0]}",
            hint="state data.masks=rgb, or leave it at auto",
        )
    ignored = {IGNORE_INDEX, settings.ignore_index}
    present = sorted(set(scan.values) - ignored)
    if settings.values is not None:
        mapping = _stated_mapping(settings)
    elif reason == LEVELS:
        mapping = _level_mapping(grey_levels(scan, settings))
    else:
        mapping = _plain_mapping(scan, present, settings)
    for value in ignored:
        mapping.values.setdefault(value, IGNORE_INDEX)
    seen = [value for value in sorted(scan.values) if mapping.values.get(value) == IGNORE_INDEX]
    text = f"{reason}{mapping.text}: values {number_ranges(present)}"
    if seen:
        text += f", {number_ranges(seen)} ignored"
    mapping.findings += file_finding(
        Severity.WARNING,
        "lossy-masks",
        "masks with class numbers are stored with loss (JPEG, WebP), so numbers at edges are likely wrong",
        scan.root,
        [mask.path for mask in scan.masks if mask.lossy],
        "save masks as PNG",
    )
    num_classes = mapping.num_classes
    own_palette = _file_palette(scan, mapping.values, num_classes)
    palette = description.colours or own_palette or default_palette(num_classes)
    if len(palette) != num_classes:
        raise UsageError(
            f"dataset.yaml gives {len(palette)} colours, but the masks have {num_classes} classes",
            hint="give one colour for each class, or name the classes",
        )
    names = settings.classes or tuple(f"class_{label}" for label in range(num_classes))
    return Understanding(
        coding=MaskCoding(coding=coding, values=mapping.values),
        classes=Classes(names=names, palette=palette),
        evidence=(f"{text} -> {num_classes} classes (from {scan.looked_at})",),
        findings=tuple(mapping.findings),
        ignored_value=settings.ignore_index,
    )


def _stated_mapping(settings: DataSettings) -> _Mapping:
    assert settings.values is not None
    values = dict(settings.values)
    labels = [label for label in values.values() if label != IGNORE_INDEX]
    num_classes = len(settings.classes) if settings.classes else max(max(labels, default=0) + 1, 2)
    wrong = sorted(label for label in labels if not 0 <= label < min(num_classes, MAX_CLASSES))
    if wrong:
        raise UsageError(
            f"data.values maps to {wrong[0]}, which is no class",
            hint=f"classes are 0..{min(num_classes, MAX_CLASSES) - 1}, and {IGNORE_INDEX} is ignored",
        )
    strange = [value for value in values if not 0 <= value <= 65535]
    if strange:
        raise UsageError(f"data.values: {strange[0]} is no mask value", hint="mask values are 0..65535")
    return _Mapping(values=values, num_classes=num_classes, findings=[])


def _level_mapping(levels: Sequence[int]) -> _Mapping:
    shown = ", ".join(map(str, levels))
    finding = Finding(
        severity=Severity.WARNING,
        code="grey-levels",
        message=f"the grey levels {shown} are read as {len(levels)} classes",
        hint="if this is wrong, state data.masks or data.values",
    )
    values = {level: label for label, level in enumerate(levels)}
    return _Mapping(values=values, num_classes=len(levels), text=", each one class", findings=[finding])


def _plain_mapping(scan: Scan, present: Sequence[int], settings: DataSettings) -> _Mapping:
    """Class numbers as they stand; where the ignored value lies among them, those above move down."""
    largest = max(present, default=0)
    ignore = settings.ignore_index
    if settings.classes is not None:
        num_classes = len(settings.classes)
        # With a name for every number, the ignored one has a name too and nothing moves.
        shifted = ignore < num_classes <= largest
    else:
        shifted = ignore < largest
        num_classes = max(largest + 1 - shifted, 2)
    if num_classes > MAX_CLASSES:
        raise DataError(
            f"{scan.files_with(largest)[0]}: the mask value {largest} would make {num_classes} classes",
            hint="are these photos, soft masks (data.masks=binary) or instance numbers? "
            f"At most {MAX_CLASSES} classes are supported; numbers are mapped with data.values",
        )
    values = {value: value - (shifted and value > ignore) for value in range(num_classes + shifted)}
    values |= {ignore: IGNORE_INDEX}
    text = f", those above the ignored {ignore} move down by one" if shifted else ""
    findings = []
    if settings.classes is None:
        findings = _sparse(scan, present, num_classes) + _mixed(scan)
    return _Mapping(values=values, num_classes=num_classes, text=text, findings=findings)


def _sparse(scan: Scan, present: Sequence[int], num_classes: int) -> list[Finding]:
    """A stray value may make many classes that nothing belongs to."""
    if num_classes < 4 or len(present) * 2 >= num_classes:
        return []
    largest = max(present)
    return [
        Finding(
            severity=Severity.WARNING,
            code="sparse-classes",
            message=f"the largest mask value {largest} makes {num_classes} classes, "
            f"but only {len(present)} values occur: {number_ranges(present)}",
            files=scan.files_with(largest)[:20],
            hint="name the classes in dataset.yaml, or map the values with data.values",
        )
    ]


def _mixed(scan: Scan) -> list[Finding]:
    """Some masks hold 0 and 1, others 0 and 255: the same foreground, written in two ways."""
    if set(scan.values) != {0, 1, IGNORE_INDEX} or any({1, 255} <= set(mask.values) for mask in scan.masks):
        return []
    return file_finding(
        Severity.ERROR,
        "mixed-codings",
        "masks hold 255 but never 1 while others hold 1 but never 255; their 255 is read as ignored",
        scan.root,
        [mask.path for mask in scan.masks if IGNORE_INDEX in mask.values],
        "if both mean foreground, state data.threshold=0; if 255 means ignored, allow mixed-codings",
    )


def _file_palette(scan: Scan, mapping: Mapping[int, int], num_classes: int) -> tuple[Colour, ...] | None:
    palette = next((mask.palette for mask in scan.masks if mask.palette is not None), None)
    if palette is None:
        return None
    by_class = {label: palette[value] for value, label in mapping.items() if value < len(palette)}
    colours = tuple(by_class[label] for label in range(num_classes) if label in by_class)
    return colours if len(colours) == num_classes == len(set(colours)) else None


def _rgb(scan: Scan, settings: DataSettings, description: Description, reason: str) -> Understanding:
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


def number_ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as text, runs drawn together: 0-3, 7, 9-11."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs[:12])
    return shown + (f" and {len(runs) - 12} more" if len(runs) > 12 else "") if runs else "none"
