"""Looks at every file of a data set of volumes and names the patients whose files do not fit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segtune.data.array_cache import Facts
from segtune.data.base import Finding, Severity
from segtune.data.files import map_threads
from segtune.data.findings import number_of, relative
from segtune.data.volumes.nifti import Header, read_header
from segtune.data.volumes.scan import Case, Unpacker
from segtune.data.volumes.settings import VolumeSettings
from segtune.errors import DataError

SAME_PLACE = 1e-2
"""Millimetres by which the corners of two volumes of one patient may lie apart."""
SCALES = 100.0
"""Intensity scales of one modality that differ by more are worth a finding."""
SHOWN = 3

_WHAT = {
    "missing-modality": ("patients that lack a modality", "add the files, or name those to use in "
                         "data.volume.modality_names; when allowed, these patients are left out"),
    "space-mismatch": ("patients with files in different spaces", "resample the mask to its image's space "
                       "(no tool can guess which is right); when allowed, these patients are left out"),
    "not-a-number": ("patients with volumes with NaN or infinite voxels",
                     "export them again; when allowed, these patients are left out"),
    "constant-volume": ("patients with volumes of one single value",
                        "export them again; when allowed, these patients are left out"),
    "unreadable-file": ("patients with files that cannot be read",
                        "copy or save them again; when allowed, these patients are left out"),
}  # fmt: skip
"""Code -> what it says of patients, and the hint."""


@dataclass(kw_only=True)
class Survey:
    """What the files of all cases hold."""

    cases: list[Case] = field(default_factory=list)
    """Those whose files fit, with the modalities asked for only."""
    problems: dict[str, list[tuple[str, Path]]] = field(default_factory=lambda: defaultdict(list))
    """Code -> what is wrong with which file."""
    labels: dict[str, Facts] = field(default_factory=dict)
    """Case -> facts of its mask."""
    scans: dict[str, dict[str, Facts]] = field(default_factory=dict)
    """Case -> modality -> facts."""
    headers: dict[str, Header] = field(default_factory=dict)
    """Case -> header of its first scan."""

    def findings(self, root: Path, settings: VolumeSettings) -> list[Finding]:
        """Everything that is wrong or stands out."""
        found = [
            Finding(
                severity=Severity.ERROR,
                code=code,
                message=f"{_WHAT[code][0]} ({len(items)}): " + _some([message for message, _ in items]),
                files=relative(root, dict.fromkeys(path for _, path in items)),
                hint=_WHAT[code][1],
            )
            for code, items in self.problems.items()
        ]
        return [*found, *self._scales(settings), *self._spaces(settings), *self._size(settings)]

    def _size(self, settings: VolumeSettings) -> list[Finding]:
        unpacked = sum(
            math.prod(header.shape[:3])
            * (
                len(self.scans[case]) * min(np.dtype(header.dtype).itemsize, 4)
                + (2 if case in self.labels else 0)
            )
            for case, header in self.headers.items()
        )
        if unpacked <= settings.cache_gib * 2**30:
            return []
        return [
            Finding(
                severity=Severity.WARNING,
                code="cache-too-small",
                message=f"unpacked, the volumes take about {unpacked / 2**30:.1f} GiB,"
                f" and data.volume.cache_gib is {settings.cache_gib:g}: they are unpacked again and again",
                hint=f"set it to {math.ceil(unpacked * 1.1 / 2**30)} or more, on a disk that has the room",
            )
        ]

    def _scales(self, settings: VolumeSettings) -> list[Finding]:
        findings = []
        spreads: dict[str, dict[str, float]] = defaultdict(dict)
        for case, modalities in self.scans.items():
            for name, facts in modalities.items():
                spreads[name][case] = facts["std"]
        for name, spread in spreads.items():
            low, high = min(spread, key=lambda c: spread[c]), max(spread, key=lambda c: spread[c])
            if spread[high] <= SCALES * spread[low]:
                continue
            ratio = spread[high] / max(spread[low], 1e-12)
            own = settings.normalise != "window"
            findings.append(
                Finding(
                    severity=Severity.INFO if own else Severity.WARNING,
                    code="intensity-scales",
                    message=f"intensity scales of {name} differ by a factor of {ratio:,.0f} between files "
                    f"(standard deviation {spread[low]:.3g} in {low}, {spread[high]:.3g} in {high})",
                    hint=f"each volume is normalised on its own (data.volume.normalise={settings.normalise})"
                    if own
                    else "one window cannot fit both: use data.volume.normalise=z-score or percentile",
                )
            )
        return findings

    def _spaces(self, settings: VolumeSettings) -> list[Finding]:
        findings = []
        orientations = sorted({header.orientation for header in self.headers.values()})
        if orientations not in ([], ["RAS"]):
            findings.append(
                Finding(
                    severity=Severity.INFO,
                    code="volume-orientation",
                    message=f"volumes are stored as {', '.join(orientations)}; slices are cut in the "
                    "patient's own directions, and predictions are written as the files are",
                )
            )
        spacings = np.array([header.spacing for header in self.headers.values()]).reshape(-1, 3)
        if len(spacings) and (spacings.max(axis=0) > 1.1 * spacings.min(axis=0)).any():
            low, high = spacings.min(axis=0), spacings.max(axis=0)
            listed = ", ".join(f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True))
            findings.append(
                Finding(
                    severity=Severity.INFO,
                    code="mixed-spacings",
                    message=f"voxel sizes differ between patients: {listed} mm (right, front, head)",
                    hint="nothing is resampled: distances are scored in millimetres of each patient's own",
                )
            )
        return findings


def survey(cases: Sequence[Case], names: Sequence[str], settings: VolumeSettings) -> Survey:
    """Reads every file once, and keeps the cases whose files fit.

    Args:
        cases: with or without masks.
        names: modalities that are needed, in order.
        settings: axis, percentiles and cache.
    """
    unpacker = Unpacker.of(settings)
    result = Survey()
    for found in map_threads(lambda case: _look(case, names, unpacker), cases):
        case, problem = found.case, found.problem
        if problem is not None:
            result.problems[problem[0]].append((f"{case.name}: {problem[1]}", problem[2]))
            continue
        assert found.header is not None
        result.cases.append(case)
        result.scans[case.name] = found.scans
        result.headers[case.name] = found.header
        if found.label is not None:
            result.labels[case.name] = found.label
    return result


@dataclass(kw_only=True)
class _Look:
    case: Case
    problem: tuple[str, str, Path] | None = None
    scans: dict[str, Facts] = field(default_factory=dict)
    label: Facts | None = None
    header: Header | None = None


def _look(case: Case, names: Sequence[str], unpacker: Unpacker) -> _Look:
    missing = [name for name in names if name not in case.scans]
    if missing:
        path = (case.first.path if case.scans else case.label) or Path(case.name)
        has = ", ".join(case.scans) or "none"
        return _Look(case=case, problem=("missing-modality", f"no {', '.join(missing)} (it has {has})", path))
    case = Case(**{**case.__dict__, "scans": {name: case.scans[name] for name in names}})
    look = _Look(case=case)
    path = case.first.path
    try:
        look.header = read_header(path)
        for other in (*(scan.path for scan in case.scans.values()), case.label, case.body):
            if other is not None and (mismatch := _mismatch(look.header, path, other)):
                look.problem = ("space-mismatch", mismatch, other)
                return look
        for name, scan in case.scans.items():
            path = scan.path
            facts = look.scans[name] = unpacker.scan_facts(scan, case.body)
            if not facts["finite"]:
                look.problem = ("not-a-number", f"{path.name} holds NaN or infinite voxels", path)
            elif facts["low"] == facts["high"]:
                look.problem = ("constant-volume", f"{path.name} is {facts['low']:g} everywhere", path)
        if case.label is not None:
            path = case.label
            look.label = unpacker.label_facts(path)
    except DataError as error:
        reason = error.message.removeprefix(f"{path}: ")
        look.problem = ("unreadable-file", f"{path.name}: {reason}", path)
    return look


def _mismatch(first: Header, path: Path, other: Path) -> str:
    """What is different about two files' spaces, as text; empty where nothing is."""
    second = read_header(other)
    if first.shape[:3] == second.shape[:3]:
        corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
        corners[:, :3] *= np.array(first.shape[:3]) - 1
        distance = np.abs(corners @ (first.affine - second.affine).T).max()
        if distance <= SAME_PLACE:
            return ""
    return f"{path.name} has {first.describe()}, {other.name} {second.describe()}"


def _some(messages: Sequence[str]) -> str:
    more = len(messages) - SHOWN
    return "; ".join(messages[:SHOWN]) + (f"; and {number_of(more, 'more', 'more')}" if more > 0 else "")


def values_of(labels: Mapping[str, Facts]) -> list[int]:
    """Every value that occurs in masks, rising."""
    return sorted({int(value) for facts in labels.values() for value in facts["values"]})
