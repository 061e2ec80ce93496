"""The data check: reads every file of a data set and names what is wrong before a run meets it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segtune.data.base import SPLITS, DataIndex, Finding, Origin, Sample, Severity, origin_of
from segtune.data.check_report import SEVERITIES, CheckReport, percent
from segtune.data.files import Progress
from segtune.data.findings import allowed, file_finding, number_of
from segtune.data.inspection import Inspection, from_values, inspect_case, to_values
from segtune.data.label_findings import label_findings, pixel_findings
from segtune.data.leak_findings import leak_findings
from segtune.data.open import open_data
from segtune.data.remembered import remember
from segtune.data.settings import DataSettings
from segtune.data.tree_findings import tree_findings
from segtune.types import IGNORE_INDEX

FEW_SAMPLES = 10
"""Fewer training samples than this are worth a warning."""
RARE = 0.005
"""Classes with a smaller share of the training pixels are called rare."""


def check_data(
    data: DataIndex | Path | str, settings: DataSettings | None = None, progress: Progress | None = None
) -> CheckReport:
    """Reads every file of a data set and reports what is wrong, missing or suspicious.

    Args:
        data: an opened data set, or where it lies.
        settings: how to read it; `settings.allow` turns errors into warnings.
        progress: called with the number of images or volumes read and their total.

    Raises:
        UsageError: there is no such path, or the settings are wrong.
        DataError: the data cannot be understood at all.
    """
    settings = settings or DataSettings()
    index = data if isinstance(data, DataIndex) else open_data(data, settings)
    cases = [list(own) for _, own in itertools.groupby(index.samples, lambda sample: sample.case)]
    inspections = remember(
        index.root,
        "check" if settings.cache else None,
        cases,
        origin=lambda own: _origin(index, own),
        make=lambda own: inspect_case(index, own),
        dump=to_values,
        load=lambda own, values: from_values(own[len(own) // 2], values),
        progress=progress,
    )
    class_pixels, ignored_pixels = _count_pixels(index, inspections)
    found = [
        *_file_findings(index, inspections),
        *_split_findings(index, settings),
        *_class_findings(index, class_pixels),
        *_mask_findings(index, inspections),
        *_image_findings(index, inspections),
        *label_findings(index, inspections),
        *pixel_findings(index, inspections),
        *leak_findings(index, inspections),
        *tree_findings(index),
    ]
    findings = [*index.findings, *(allowed(finding, settings, index.expected) for finding in found)]
    sizes = Counter(inspection.size for inspection in inspections if inspection.size is not None)
    usable = tuple(
        sample
        for own, inspection in zip(cases, inspections, strict=True)
        if inspection.fits
        for sample in own
    )
    return CheckReport(
        inspections=tuple(inspections),
        root=index.root,
        format=index.format,
        num_classes=index.classes.num_classes,
        class_names=index.classes.names,
        ignore_index=index.classes.ignore_index,
        splits=index.split_sizes,
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES[finding.severity])),
        evidence=index.evidence,
        class_pixels=class_pixels,
        ignored_pixels=ignored_pixels,
        image_sizes=dict(sizes.most_common()),
        mask_values=_mask_values(inspections),
        details=index.details,
        usable=index.with_samples(usable),
    )


def _origin(index: DataIndex, samples: Sequence[Sample]) -> Origin | None:
    """What the inspection of a case depends on, or None where it cannot be told."""
    parts = [origin_of(index.reader, sample) for sample in samples]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    files = tuple(dict.fromkeys(path for part in known for path in part.files))
    return Origin(files, "\n".join(dict.fromkeys(part.rest for part in known)))


def _mask_values(inspections: Sequence[Inspection]) -> dict[int, tuple[int, int]]:
    """Value in the mask files -> its pixels and the number of masks that hold it."""
    pixels: Counter[int] = Counter()
    masks: Counter[int] = Counter()
    for inspection in inspections:
        pixels.update(inspection.stored)
        masks.update(inspection.stored.keys())
    return {value: (pixels[value], masks[value]) for value in sorted(pixels)}


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
                    hint=f"data.{split}_fraction=0 states so"
                    if stated
                    else f"add some, or state data.{split}_fraction=0 if this is meant",
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
        shown = [f"{name} {percent(share)}" for share, name in sorted(rare)]
        findings.append(
            Finding(
                severity=Severity.INFO,
                code="class-imbalance",
                message=f"less than {percent(RARE)} of the training pixels: {_some(shown)}",
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
        "nothing to do, unless the channel means something: data.bands names channels",
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


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")


def _size(size: tuple[int, int] | None) -> str:
    return "?" if size is None else f"{size[0]} x {size[1]}"
