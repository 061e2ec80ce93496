"""Finds what lets a score look too good: the same picture, sequence or ground in two splits."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from segtune.data.base import SPLITS, DataIndex, Finding, Severity
from segtune.data.duplicates import near_duplicates
from segtune.data.findings import number_of, relative
from segtune.data.inspection import Inspection

_NUMBERED = re.compile(r"^(.*\d.*?)[_\-. ]+[A-Za-z]{0,6}\d+$")
"""A name that ends in a number after a part with a number of its own: 0001TP_006690, patient12_slice3."""
GROUP_EXAMPLE = r"^(.*\d.*?)[_\-. ]+[A-Za-z]{0,6}\d+$"
_TILE = re.compile(r"^(.*?)[_\-]?x?(\d+)[_\-]y?(\d+)$")
"""A name that ends in two numbers, which may be the place of a tile."""
LATTICE = 16
"""Places of tiles are multiples of at least so many pixels; frame numbers are not."""

Pair = tuple[Inspection, Inspection]


def leak_findings(index: DataIndex, inspections: Sequence[Inspection]) -> list[Finding]:
    """Findings about images of different splits that have too much in common."""
    findings, seen = _identical(index, inspections)
    findings += _near(index, inspections, seen)
    tiles = _tiles(index, inspections)
    return findings + (tiles or _sequences(index))


def _identical(index: DataIndex, inspections: Sequence[Inspection]) -> tuple[list[Finding], set[str]]:
    """Files that are the same byte for byte, across splits and within one; the images across splits."""
    groups: dict[str, list[Inspection]] = defaultdict(list)
    for inspection in inspections:
        if inspection.digest:
            groups[inspection.digest].append(inspection)
    same = [sorted(group, key=_split_order) for group in groups.values() if len(group) > 1]
    across = [group for group in same if len({i.sample.split for i in group}) > 1]
    within = [group for group in same if len({i.sample.split for i in group}) == 1]
    findings = _same_files(
        index,
        across,
        Severity.WARNING,
        "identical-across-splits",
        "images stand byte for byte in more than one split",
        "remove all but one of each, and their masks: scores on known images say nothing",
    ) + _same_files(
        index,
        within,
        Severity.INFO,
        "identical-images",
        "images stand byte for byte more than once in a split",
        "fine if it is meant; otherwise remove all but one of each, and their masks",
    )
    return findings, {i.sample.name for group in across for i in group}


def _split_order(inspection: Inspection) -> int:
    split = inspection.sample.split
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def _same_files(
    index: DataIndex,
    groups: Sequence[Sequence[Inspection]],
    severity: Severity,
    code: str,
    what: str,
    hint: str,
) -> list[Finding]:
    if not groups:
        return []
    names = [relative(index.root, [i.sample.image for i in group]) for group in groups]
    shown = "; ".join(" = ".join(files[:3]) for files in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [
        Finding(
            severity=severity,
            code=code,
            message=f"{what} ({len(names)}): {shown}{more}",
            files=tuple(file for files in names for file in files),
            hint=hint,
        )
    ]


def _near(index: DataIndex, inspections: Sequence[Inspection], seen: set[str]) -> list[Finding]:
    findings = []
    for first, second in itertools.combinations(SPLITS, 2):
        sets = [
            [
                i
                for i in inspections
                if i.sample.split == split and i.thumbnail is not None and i.sample.name not in seen
            ]
            for split in (first, second)
        ]
        if not all(sets):
            continue
        thumbnails = [np.stack([i.thumbnail for i in one if i.thumbnail is not None]) for one in sets]
        pairs = [(sets[0][m], sets[1][n]) for n, m in near_duplicates(thumbnails[1], thumbnails[0])]
        if not pairs:
            continue
        files = relative(index.root, [one.sample.image for pair in pairs for one in pair])
        shown = ", ".join(f"{files[k + 1]} like {files[k]}" for k in range(0, min(len(files), 6), 2))
        findings.append(
            Finding(
                severity=Severity.WARNING,
                code="near-duplicate-across-splits",
                message=f"{second} images that look almost the same as one of {first} "
                f"({len(pairs)} of {len(sets[1])}): {shown}",
                files=files,
                hint="scores are too good; split by sequence or patient (data.group), or remove them",
            )
        )
    return findings


def _tiles(index: DataIndex, inspections: Sequence[Inspection]) -> list[Finding]:
    """Tiles of different splits that share ground, by the places in their names."""
    if any(sample.group is not None for sample in index.samples):
        return []
    scenes: dict[str, list[tuple[int, int, Inspection]]] = defaultdict(list)
    for inspection in inspections:
        match = _TILE.match(inspection.sample.name)
        if match is not None and inspection.size is not None:
            scenes[match[1]].append((int(match[2]), int(match[3]), inspection))
    pairs: list[Pair] = []
    for tiles in scenes.values():
        xs, ys = {x for x, _, _ in tiles}, {y for _, y, _ in tiles}
        step = int(np.gcd.reduce([*xs, *ys]))
        if len(xs) < 2 or len(ys) < 2 or step < LATTICE:
            continue
        for (x0, y0, a), (x1, y1, b) in itertools.combinations(tiles, 2):
            side = min(a.size or (0, 0)), min(b.size or (0, 0))
            near = abs(x0 - x1) < min(side) and abs(y0 - y1) < min(side)
            if near and a.sample.split != b.sample.split:
                pairs.append((a, b))
    if not pairs:
        return []
    files = relative(index.root, [one.sample.image for pair in pairs for one in pair])
    shown = ", ".join(f"{files[k]} and {files[k + 1]}" for k in range(0, min(len(files), 4), 2))
    return [
        Finding(
            severity=Severity.WARNING,
            code="overlapping-tiles",
            message=f"by their names, tiles in different splits overlap ({number_of(len(pairs), 'pair')}): "
            f"{shown}",
            files=tuple(dict.fromkeys(files)),
            hint=r"split by scene: data.group='^(.*?)[_\-]?x?\d+[_\-]y?\d+$', or cut tiles without overlap",
        )
    ]


def _sequences(index: DataIndex) -> list[Finding]:
    """Names that look like frames of sequences, or slices of patients, torn between splits."""
    if any(sample.group is not None for sample in index.samples):
        return []
    groups: dict[str, set[str | None]] = defaultdict(set)
    count = 0
    for sample in index.samples:
        match = _NUMBERED.match(sample.name)
        if match is not None:
            groups[match[1]].add(sample.split)
            count += 1
    torn = sorted(group for group, splits in groups.items() if len(splits) > 1)
    # Most names have to follow the pattern, and several share a group, before it means anything.
    if not torn or count < 0.9 * len(index.samples) or len(groups) < 2 or len(groups) > count / 2:
        return []
    return [
        Finding(
            severity=Severity.INFO,
            code="names-across-splits",
            message=f"names begin alike in {len(groups)} groups, of which {len(torn)} are in more than one "
            f"split: {', '.join(torn[:5])}",
            hint=f"if these are sequences, patients or scenes, keep them whole: data.group='{GROUP_EXAMPLE}'",
        )
    ]
