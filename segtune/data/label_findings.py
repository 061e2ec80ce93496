"""What the pixels of images and masks, taken together, say of mistakes in labelling and export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from segtune.data.base import DataIndex, Finding, Severity
from segtune.data.findings import file_finding
from segtune.data.inspection import CLASS_MAP, PHOTO, Inspection
from segtune.data.masks import FileReader, MaskCoding
from segtune.types import IGNORE_INDEX

INVERTED_MASKS = 5
"""With fewer masks nothing is said of inversion."""
INVERTED_COVER = 0.5
"""Foreground that covers more than this share of a mask is most of it."""
INVERTED_SHARE = 0.8
"""Share of the masks that have to look inverted, by cover and by border."""
INVERTED_BORDER = 0.85
"""Share of a mask's border that is foreground where it looks inverted."""
TRANSITION = 0.8
"""A value with this share of its pixels between a smaller and a larger neighbour belongs to no region."""
SCALES = 8.0
"""The brightest pixels of files on one scale do not differ by more than this factor."""


def label_findings(index: DataIndex, inspections: Sequence[Inspection]) -> list[Finding]:
    """Findings about what the numbers in masks mean; none where a format fixes it."""
    if not isinstance(index.reader, FileReader):
        return []
    coding = index.reader.coding
    stored: Counter[int] = Counter()
    for inspection in inspections:
        stored.update(inspection.stored)
    return [
        *_swapped(index, inspections),
        *_foreground_ignored(index, coding, stored),
        *_inverted(index, inspections, stored),
        *_off_by_one(coding, stored),
        *_interpolated(index, coding, inspections),
        *_soft(index, coding, inspections, stored),
    ]


def _swapped(index: DataIndex, inspections: Sequence[Inspection]) -> list[Finding]:
    return file_finding(
        Severity.ERROR,
        "image-and-mask-swapped",
        "images have the few grey levels of a class map while their masks have those of a photograph",
        index.root,
        [i.sample.image for i in inspections if i.image_focus >= CLASS_MAP and i.mask_focus < PHOTO],
        "exchange the two files of each pair; when allowed, they are used as they are",
    )


def _foreground_ignored(index: DataIndex, coding: MaskCoding, stored: Counter[int]) -> list[Finding]:
    if coding.coding != "index" or not {IGNORE_INDEX} < stored.keys() <= {0, IGNORE_INDEX}:
        return []
    if coding.values.get(IGNORE_INDEX) != IGNORE_INDEX:
        return []
    return [
        Finding(
            severity=Severity.ERROR,
            code="foreground-ignored",
            message="masks hold 0 and 255 only, and 255 is read as ignored: only class 0 is left to learn",
            hint="if 255 is the foreground, state data.masks=binary with two classes",
        )
    ]


def looks_inverted(inspections: Sequence[Inspection]) -> tuple[float, float] | None:
    """Median share of the foreground, and its mean share on borders, where masks look inverted."""
    covers, borders = [], []
    for inspection in inspections:
        if inspection.counts is None or not inspection.counts[:2].all():
            continue
        covers.append(float(inspection.counts[1] / inspection.counts[:2].sum()))
        borders.append(inspection.border[0] / max(inspection.border[1], 1))
    if len(covers) < INVERTED_MASKS:
        return None
    both = [
        cover > INVERTED_COVER and border >= INVERTED_BORDER
        for cover, border in zip(covers, borders, strict=True)
    ]
    return (median(covers), sum(borders) / len(borders)) if sum(both) >= INVERTED_SHARE * len(both) else None


def _inverted(index: DataIndex, inspections: Sequence[Inspection], stored: Counter[int]) -> list[Finding]:
    found = looks_inverted(inspections) if index.classes.num_classes == 2 else None
    if found is None:
        return []
    cover, border = found
    two = f"data.values={{{min(stored)}: 1, {max(stored)}: 0}} or " if len(stored) == 2 else ""
    return [
        Finding(
            severity=Severity.WARNING,
            code="inverted-masks",
            message=f"masks look inverted: {index.classes.names[1]} covers {cover:.0%} of the median mask "
            f"and {border:.0%} of the masks' borders, as a background does",
            hint=f"if so, {two}--fix OUT; if the foreground is that large, data.allow=[inverted-masks] "
            "makes --fix leave it alone",
        )
    ]


def is_off_by_one(coding: MaskCoding, stored: Counter[int]) -> int | None:
    """K where masks hold 1..K as classes 1..K, never 0; None otherwise."""
    labels = sorted(value for value in stored if value != IGNORE_INDEX)
    if coding.coding not in ("index", "palette") or len(labels) < 2 or labels != [*range(1, len(labels) + 1)]:
        return None
    # Where the values are mapped already, somebody knows about it.
    return len(labels) if all(coding.values.get(value, value) == value for value in labels) else None


def _off_by_one(coding: MaskCoding, stored: Counter[int]) -> list[Finding]:
    number = is_off_by_one(coding, stored)
    if number is None:
        return []
    return [
        Finding(
            severity=Severity.WARNING,
            code="off-by-one-labels",
            message=f"masks hold the values 1 to {number} and never 0: counted from one?",
            hint=f"if 1 is the first class, data.values={{1: 0, ..., {number}: {number - 1}}} or --fix OUT; "
            "if 0 is a class, absent by chance, data.allow=[off-by-one-labels] makes --fix leave it alone",
        )
    ]


def interpolated_values(coding: MaskCoding, inspections: Sequence[Inspection]) -> list[int]:
    """Values of class numbers that occur almost only between a smaller and a larger neighbour.

    A single such value may be a thin line around objects; two are what interpolation leaves.
    """
    if coding.coding not in ("index", "palette"):
        return []
    stored: Counter[int] = Counter()
    between: Counter[int] = Counter()
    for inspection in inspections:
        stored.update(inspection.stored)
        between.update(inspection.between)
    found = [value for value, pixels in sorted(stored.items()) if between[value] >= TRANSITION * pixels]
    return found if len(found) > 1 else []


def _interpolated(index: DataIndex, coding: MaskCoding, inspections: Sequence[Inspection]) -> list[Finding]:
    values = interpolated_values(coding, inspections)
    shown = ", ".join(map(str, values[:6])) + (f" and {len(values) - 6} more" if len(values) > 6 else "")
    rest = set().union(*(i.stored.keys() for i in inspections)) - set(values)
    hint = "resize masks with nearest neighbour; --fix OUT ignores these pixels"
    if len(rest) == 2:
        hint = "these are black and white masks: state data.masks=binary"
    return file_finding(
        Severity.WARNING,
        "interpolated-masks",
        f"masks were resized with interpolation: the values {shown} occur only at edges, between two others",
        index.root,
        [i.sample.mask for i in inspections if i.sample.mask is not None and i.stored.keys() & set(values)],
        hint,
    )


def _soft(
    index: DataIndex, coding: MaskCoding, inspections: Sequence[Inspection], stored: Counter[int]
) -> list[Finding]:
    if coding.coding != "binary" or len(stored) < 3:
        return []
    ends = {min(stored), max(stored), *coding.values}
    soft = [i for i in inspections if i.stored.keys() - ends and i.sample.mask is not None]
    share = sum(n for value, n in stored.items() if value not in ends) / stored.total()
    return file_finding(
        Severity.INFO,
        "soft-masks",
        f"black and white masks hold grey ({share:.1%} of the pixels): resized with interpolation or stored "
        f"with loss; foreground is above {coding.threshold}",
        index.root,
        [i.sample.mask for i in soft if i.sample.mask is not None],
        "nothing to do if the threshold fits (see --preview); --fix OUT writes clean masks",
    )


def pixel_findings(index: DataIndex, inspections: Sequence[Inspection]) -> list[Finding]:
    """Findings about the scale of the images' values."""
    if not isinstance(index.reader, FileReader):
        return []  # volumes are brought to one scale each
    read = [i for i in inspections if i.image_type]
    types = Counter(i.image_type for i in read)
    if len(types) > 1:
        usual = types.most_common(1)[0][0]
        counts = ", ".join(f"{count} {name}" for name, count in types.most_common())
        return file_finding(
            Severity.WARNING,
            "mixed-image-types",
            f"images differ in their type ({counts}), so that equal values may not mean equal brightness",
            index.root,
            [i.sample.image for i in read if i.image_type != usual],
            "save all images with the same number of bits",
        )
    bright = [i for i in read if i.image_range[1] > 0]
    if not bright or types.keys() == {"uint8"}:
        dark = [i for i in bright if i.image_range[1] <= 1] if types.keys() == {"uint8"} else []
        return file_finding(
            Severity.WARNING,
            "almost-black-images",
            "8-bit images hold 0 and 1 only: were they saved from values between 0 and 1?",
            index.root,
            [i.sample.image for i in dark],
            "multiply by 255 before saving, or state data.value_range=0,1",
        )
    highs = [i.image_range[1] for i in bright]
    if max(highs) > SCALES * min(highs):
        middle = median(highs)
        return file_finding(
            Severity.WARNING,
            "mixed-intensities",
            f"images are on different scales: the brightest 1% begin at {min(highs):g} in one, "
            f"at {max(highs):g} in another",
            index.root,
            [
                i.sample.image
                for i in bright
                if not middle / SCALES**0.5 <= i.image_range[1] <= middle * SCALES**0.5
            ],
            "bring all images to one scale before saving them",
        )
    if types.keys() == {"uint16"} and max(highs) < 8192 and index.reader.channels.value_range is None:
        return [
            Finding(
                severity=Severity.WARNING,
                code="unused-range",
                message=f"16-bit images use values up to about {max(highs):g} of 65535 and look almost black",
                hint=f"state the range, e.g. data.value_range=0,{2 ** int(max(highs)).bit_length() - 1}",
            )
        ]
    return []
