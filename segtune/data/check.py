"""The data check: reads every file of a data set and names what is wrong before a run meets it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtune.data.base import SPLITS, DataIndex, Finding, Severity
from segtune.data.duplicates import near_duplicates
from segtune.data.files import Progress, map_threads
from segtune.data.findings import allowed, file_finding, number_of, relative
from segtune.data.inspection import Inspection, inspect
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX

FEW_SAMPLES = 10
"""Fewer training samples than this are worth a warning."""
RARE = 0.005
"""Classes with a smaller share of the training pixels are called rare."""
BAR = 24
_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What the data check found."""

    root: Path
    format: str
    num_classes: int
    class_names: tuple[str, ...]
    ignore_index: int
    """The ignored value in memory; the one in the files stands in `details`."""
    splits: Mapping[str, int]
    """Number of samples of each split."""
    findings: tuple[Finding, ...]
    """Errors first."""
    evidence: tuple[str, ...]
    class_pixels: Mapping[str, tuple[int, ...]]
    """Split -> pixels of each class."""
    ignored_pixels: Mapping[str, int]
    """Split -> pixels that count for nothing."""
    image_sizes: Mapping[tuple[int, int], int]
    """(height, width) -> number of images, the most frequent first."""
    details: Mapping[str, Any]
    usable: DataIndex
    """The data without the samples that cannot be read or whose sizes do not fit."""

    @property
    def ok(self) -> bool:
        """Whether a run may start: there is no error."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)

    def require_ok(self) -> DataIndex:
        """The usable data.

        Raises:
            DataError: there are errors that `data.allow` does not name.
        """
        errors = [finding for finding in self.findings if finding.severity is Severity.ERROR]
        if errors:
            codes = sorted({finding.code for finding in errors})
            lines = [f"  {finding.code}: {finding.message}" for finding in errors]
            raise DataError(
                "\n".join([f"{self.root}: the data check found {number_of(len(errors), 'error')}:", *lines]),
                hint=f"see `segtune data check {self.root}`; to go on all the same: "
                f"data.allow=[{', '.join(codes)}]",
            )
        return self.usable

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "root": str(self.root),
            "format": self.format,
            "ok": self.ok,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "ignore_index": self.ignore_index,
            "splits": dict(self.splits),
            "findings": [
                {**asdict(finding), "severity": finding.severity.value, "files": list(finding.files)}
                for finding in self.findings
            ],
            "evidence": list(self.evidence),
            "class_pixels": {split: list(pixels) for split, pixels in self.class_pixels.items()},
            "ignored_pixels": dict(self.ignored_pixels),
            "image_sizes": [
                {"height": height, "width": width, "count": count}
                for (height, width), count in self.image_sizes.items()
            ],
            "details": dict(self.details),
        }

    def histogram(self) -> str:
        """The share of pixels of each class in each split, as text."""
        splits = [split for split in SPLITS if split in self.class_pixels]
        totals = {split: max(sum(self.class_pixels[split]), 1) for split in splits}
        shares = {split: [n / totals[split] for n in self.class_pixels[split]] for split in splits}
        width = max(len(name) for name in (*self.class_names, "(ignored)"))
        lines = [f"{'class':<{width}}" + "".join(f"{split:>9}" for split in splits)]
        largest = max((shares[splits[0]] if splits else [0.0]), default=0.0) or 1.0
        for label, name in enumerate(self.class_names):
            cells = "".join(f"{_percent(shares[split][label]):>9}" for split in splits)
            bar = "#" * round(shares[splits[0]][label] / largest * BAR) if splits else ""
            lines.append(f"{name:<{width}}{cells}  {bar}".rstrip())
        ignored = {
            split: self.ignored_pixels[split]
            / max(self.ignored_pixels[split] + sum(self.class_pixels[split]), 1)
            for split in splits
        }
        if any(ignored.values()):
            lines.append(
                f"{'(ignored)':<{width}}" + "".join(f"{_percent(ignored[split]):>9}" for split in splits)
            )
        return "\n".join(lines)

    def text(self) -> str:
        """The whole report for a reader."""
        sizes = ", ".join(f"{h} x {w} ({n})" for (h, w), n in itertools.islice(self.image_sizes.items(), 4))
        more = len(self.image_sizes) - 4
        splits = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        lines = [
            f"{self.root}",
            *(f"  {line}" for line in self.evidence),
            f"  {self.num_classes} classes; {splits}; height x width {sizes}"
            + (f" and {more} more" if more > 0 else ""),
            "",
            *(f"  {line}" for line in self.histogram().splitlines()),
            "",
        ]
        for finding in self.findings:
            lines.append(f"  {finding.severity.value} [{finding.code}] {finding.message}")
            if finding.hint:
                lines.append(f"    hint: {finding.hint}")
        counts = Counter(finding.severity for finding in self.findings)
        lines.append(
            f"  {number_of(counts[Severity.ERROR], 'error')}, {number_of(counts[Severity.WARNING], 'warning')}"
        )
        return "\n".join(lines)


def check_data(
    data: DataIndex | Path | str, settings: DataSettings | None = None, progress: Progress | None = None
) -> CheckReport:
    """Reads every file of a data set and reports what is wrong, missing or suspicious.

    Args:
        data: an opened data set, or where it lies.
        settings: how to read it; `settings.allow` turns errors into warnings.
        progress: called with the number of samples read and their total.

    Raises:
        UsageError: there is no such path, or the settings are wrong.
        DataError: the data cannot be understood at all.
    """
    settings = settings or DataSettings()
    index = data if isinstance(data, DataIndex) else open_data(data, settings)
    inspections = map_threads(lambda sample: inspect(index, sample), index.samples, progress)
    class_pixels, ignored_pixels = _count_pixels(index, inspections)
    found = [
        *_file_findings(index, inspections),
        *_split_findings(index, settings),
        *_class_findings(index, class_pixels),
        *_mask_findings(index, inspections),
        *_image_findings(index, inspections),
        *_duplicate_findings(index, inspections),
    ]
    findings = [*index.findings, *(allowed(finding, settings) for finding in found)]
    sizes = Counter(inspection.size for inspection in inspections if inspection.size is not None)
    usable = tuple(inspection.sample for inspection in inspections if inspection.fits)
    return CheckReport(
        root=index.root,
        format=index.format,
        num_classes=index.classes.num_classes,
        class_names=index.classes.names,
        ignore_index=index.classes.ignore_index,
        splits=index.split_sizes,
        findings=tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity])),
        evidence=index.evidence,
        class_pixels=class_pixels,
        ignored_pixels=ignored_pixels,
        image_sizes=dict(sizes.most_common()),
        details=index.details,
        usable=index.with_samples(usable),
    )


def _count_pixels(
    index: DataIndex, inspections: Sequence[Inspection]
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    totals: dict[str, NDArray[np.int64]] = {}
    for inspection in inspections:
        if inspection.counts is not None and inspection.sample.split is not None:
            split = inspection.sample.split
            totals[split] = totals.get(split, np.zeros(IGNORE_INDEX + 1, np.int64)) + inspection.counts
    ordered = [split for split in SPLITS if split in totals]
    number = index.classes.num_classes
    pixels = {split: tuple(int(n) for n in totals[split][:number]) for split in ordered}
    return pixels, {split: int(totals[split][IGNORE_INDEX]) for split in ordered}


def _file_findings(index: DataIndex, inspections: Sequence[Inspection]) -> list[Finding]:
    findings = []
    unreadable = [item for inspection in inspections for item in inspection.unreadable]
    if unreadable:
        findings += file_finding(
            Severity.ERROR,
            "unreadable-file",
            f"files cannot be read ({unreadable[0][1]})",
            index.root,
            [path for path, _ in unreadable],
            "copy or save them again, or remove them; when allowed, their samples are left out",
        )
    mismatched = [
        i for i in inspections if i.size is not None and i.mask_size is not None and i.size != i.mask_size
    ]
    if mismatched:
        first = mismatched[0]
        hint = "export the masks at the images' size; when allowed, these samples are left out"
        if any(i.rotated and i.size == (i.mask_size or ())[::-1] for i in mismatched):
            hint = (
                "images with an EXIF rotation are turned upright, and these masks were drawn before: "
                "save the images without the tag"
            )
        findings += file_finding(
            Severity.ERROR,
            "size-mismatch",
            f"masks have another height x width than their image ({_size(first.mask_size)} for "
            f"{_size(first.size)})",
            index.root,
            [i.sample.mask for i in mismatched if i.sample.mask is not None],
            hint,
        )
    outside = [i for i in inspections if i.outside and i.sample.mask is not None]
    if outside:
        findings += file_finding(
            Severity.ERROR,
            "value-outside-classes",
            f"masks hold values that mean no class ({outside[0].outside})",
            index.root,
            [i.sample.mask for i in outside if i.sample.mask is not None],
            "name every class, or map the values with data.values; when allowed, such pixels are ignored",
        )
    return findings


def _split_findings(index: DataIndex, settings: DataSettings) -> list[Finding]:
    sizes = index.split_sizes
    findings = []
    if "train" not in sizes:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                code="empty-split",
                message="there are no training samples",
                hint="name a folder or split train; an evaluation may allow empty-split",
            )
        )
    elif sizes["train"] < FEW_SAMPLES:
        findings.append(
            Finding(
                severity=Severity.WARNING,
                code="few-samples",
                message=f"only {number_of(sizes['train'], 'training sample')}",
                hint="expect scores to vary much from run to run",
            )
        )
    for split, share in (("val", settings.val_fraction), ("test", settings.test_fraction)):
        if split not in sizes:
            stated = share == 0
            effect = "no best state is chosen" if split == "val" else "nothing is left for a final score"
            findings.append(
                Finding(
                    severity=Severity.INFO if stated else Severity.WARNING,
                    code="empty-split",
                    message=f"there are no {split} samples: {effect}",
                    hint="" if stated else f"add some, or state data.{split}_fraction=0 if this is meant",
                )
            )
    return findings


def _class_findings(index: DataIndex, class_pixels: Mapping[str, Sequence[int]]) -> list[Finding]:
    names = index.classes.names
    findings = []
    present = {label for counts in class_pixels.values() for label, n in enumerate(counts) if n}
    absent = [name for label, name in enumerate(names) if label not in present]
    if absent:
        findings.append(
            Finding(
                severity=Severity.WARNING,
                code="class-absent",
                message=f"no mask holds {len(absent)} of the {len(names)} classes: {_some(absent)}",
                hint="they cannot be learned or scored; name only the classes that matter in dataset.yaml",
            )
        )
    for split, counts in class_pixels.items():
        lacking = [names[label] for label in sorted(present) if counts[label] == 0]
        if lacking:
            effect = "cannot be learned" if split == "train" else "get no score"
            findings.append(
                Finding(
                    severity=Severity.WARNING,
                    code="class-absent-from-split",
                    message=f"absent from {split}, so that they {effect} there: {_some(lacking)}",
                    hint="choose another split (data.split_seed), or add samples with these classes",
                )
            )
    counts = class_pixels.get("train", ())
    total = sum(counts)
    rare = [(n / total, names[label]) for label, n in enumerate(counts) if 0 < n < RARE * total]
    if rare:
        shown = [f"{name} {_percent(share)}" for share, name in sorted(rare)]
        findings.append(
            Finding(
                severity=Severity.INFO,
                code="class-imbalance",
                message=f"less than {_percent(RARE)} of the training pixels: {_some(shown)}",
                hint="class weights, or a loss such as dice or focal, may help",
            )
        )
    return findings


def _mask_findings(index: DataIndex, inspections: Sequence[Inspection]) -> list[Finding]:
    counted = [(i, i.counts) for i in inspections if i.counts is not None]
    ignored = [i.sample.mask for i, counts in counted if counts[IGNORE_INDEX] == counts.sum()]
    findings = file_finding(
        Severity.WARNING,
        "all-ignored-mask",
        "masks are ignored all over and teach nothing",
        index.root,
        [path for path in ignored if path is not None],
        "remove them, or check data.ignore_index and data.values",
    )
    if index.classes.num_classes == 2:
        empty = [i.sample.mask for i, counts in counted if counts[1] == 0 and counts[0] > 0]
        findings += file_finding(
            Severity.INFO,
            "empty-mask",
            f"masks hold no {index.classes.names[1]}",
            index.root,
            [path for path in empty if path is not None],
            "fine if it is true of the images",
        )
    return findings


def _image_findings(index: DataIndex, inspections: Sequence[Inspection]) -> list[Finding]:
    findings = file_finding(
        Severity.WARNING,
        "exif-rotated",
        "images carry an EXIF rotation that their masks lack; they are turned upright",
        index.root,
        [i.sample.image for i in inspections if i.rotated],
        "make sure that the masks were drawn on the upright images",
    )
    findings += file_finding(
        Severity.WARNING,
        "several-frames",
        "images hold several frames or pages; only the first is read",
        index.root,
        [i.sample.image for i in inspections if i.num_frames > 1],
        "save one file for each frame",
    )
    findings += file_finding(
        Severity.INFO,
        "alpha-dropped",
        "images have an alpha channel, which is dropped",
        index.root,
        [i.sample.image for i in inspections if i.alpha],
        "",
    )
    sizes = Counter(i.size for i in inspections if i.size is not None)
    if len(sizes) > 1:
        heights, widths = [size[0] for size in sizes], [size[1] for size in sizes]
        findings.append(
            Finding(
                severity=Severity.INFO,
                code="mixed-sizes",
                message=f"images have {len(sizes)} sizes: height {min(heights)} to {max(heights)}, "
                f"width {min(widths)} to {max(widths)} pixels",
                hint="training uses crops (data.crop); data.resize brings all to one size",
            )
        )
    return findings


def _duplicate_findings(index: DataIndex, inspections: Sequence[Inspection]) -> list[Finding]:
    findings = []
    for first, second in itertools.combinations(SPLITS, 2):
        sets = [
            [i for i in inspections if i.sample.split == split and i.thumbnail is not None]
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


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")


def _size(size: tuple[int, int] | None) -> str:
    return "?" if size is None else f"{size[0]} x {size[1]}"


def _percent(share: float) -> str:
    if share == 0:
        return "0%"
    return "<0.01%" if share < 0.0001 else f"{share:.2%}" if share < 0.01 else f"{share:.1%}"
