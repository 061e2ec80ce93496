"""Writes a corrected copy of a data set: what the data check can put right by itself, and nothing else.

The copy is a table (data.csv) of images, copied byte for byte, and masks of class numbers as PNG, with a
dataset.yaml. It is made under another name and put in place when whole; the data itself is never touched.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image as Pillow

from segtune.data.base import SPLITS, Classes, DataIndex, Mask, Sample
from segtune.data.check_report import CheckReport
from segtune.data.files import SUFFIXES, Progress, map_threads
from segtune.data.findings import number_of
from segtune.data.inspection import Inspection
from segtune.data.label_findings import interpolated_values, is_off_by_one, looks_inverted
from segtune.data.masks import FileReader
from segtune.data.settings import DataSettings
from segtune.data.tree_findings import same_name
from segtune.errors import DataError, UsageError
from segtune.types import IGNORE_INDEX

_VOLUMES = (
    "volumes",
    "data.exclude leaves patients out, data.volume.labels and data.values map values; wrong voxels are put "
    "right where they were drawn",
)
REFUSED = {
    **dict.fromkeys(("msd", "brats", "nifti"), _VOLUMES),
    "hf_dataset": (
        "rows of a table",
        "data.values maps values and data.exclude leaves rows out; or write the rows as image files first",
    ),
    "geotiff": (
        "tiles of rasters",
        "data.values maps values and data.exclude leaves tiles out; rasters are put right at their source",
    ),
}
"""Format -> what it holds that --fix does not copy, and what helps instead."""


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What a corrected copy holds."""

    folder: Path
    written: int
    """Pairs of image and mask."""
    changes: tuple[str, ...]
    """What was put right."""
    left_out: tuple[str, ...]
    """Images that are not in the copy, each with the reason."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    index: DataIndex
    classes: Classes
    inverted: bool
    ignored: tuple[int, ...]
    """Values in the files that interpolation left, ignored in the copy."""
    changes: tuple[str, ...]


def write_fixed(
    report: CheckReport, settings: DataSettings, folder: Path, progress: Progress | None = None
) -> Fixed:
    """Writes a corrected copy of checked data.

    Args:
        report: of the data check.
        settings: how the data was read; findings whose code `settings.allow` names are left alone.
        folder: of the copy; must not be there, or be empty.
        progress: called with the number of pairs done and their total.

    Raises:
        UsageError: the folder is taken or lies in the data, or the data are volumes.
        DataError: no pair is left, or the copy cannot be written.
    """
    _check_target(report, folder)
    plan = _plan(report, settings)
    wrong = {i.sample.name: _why_left_out(i) for i in report.inspections if not i.fits}
    swapped = {file for f in report.findings if f.code == "image-and-mask-swapped" for file in f.files}
    repeated = _repeated(report, settings, plan)
    kept, left_out = [], []
    for inspection in report.inspections:
        sample = inspection.sample
        image = sample.image.relative_to(report.root).as_posix()
        if sample.name in wrong:
            left_out.append(f"{image}: {wrong[sample.name]}")
        elif image in swapped and "image-and-mask-swapped" not in settings.allow:
            left_out.append(f"{image}: image and mask look swapped")
        elif sample.mask is None:
            left_out.append(f"{image}: no mask")
        elif sample.name in repeated:
            left_out.append(f"{image}: {repeated[sample.name]}")
        else:
            kept.append(sample)
    if not kept:
        raise DataError(
            f"{report.root}: no pair of image and mask can be copied", hint="; ".join(left_out[:3])
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            _write(plan, kept, left_out, temporary, progress)
            temporary.chmod(0o755)
            temporary.replace(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}", hint="check its place, rights and space"
        ) from None
    return Fixed(folder=folder, written=len(kept), changes=plan.changes, left_out=tuple(left_out))


def _repeated(report: CheckReport, settings: DataSettings, plan: _Plan) -> dict[str, str]:
    """Samples whose image stands elsewhere byte for byte, and why they are left out.

    Of several in one split the first stays. Of those in several splits the one of the test split stays, else
    that of the validation split: a score on a known image says nothing, and training can do without it.
    """
    groups: dict[str, list[Inspection]] = defaultdict(list)
    for inspection in report.inspections:
        if inspection.digest and inspection.fits and inspection.sample.mask is not None:
            groups[inspection.digest].append(inspection)
    reasons = {}
    for group in groups.values():
        first: dict[str | None, Inspection] = {}
        pairs = []
        for inspection in group:
            stays = first.setdefault(inspection.sample.split, inspection)
            if stays is not inspection and "identical-images" not in settings.allow:
                pairs.append((inspection, stays))
        if "identical-across-splits" not in settings.allow:
            best = max(first, key=lambda split: SPLITS.index(split) if split in SPLITS else -1)
            pairs += [(one, first[best]) for split, one in first.items() if split != best]
        for out, stays in pairs:
            masks = plan.index.reader.mask(out.sample), plan.index.reader.mask(stays.sample)
            name = stays.sample.image.relative_to(report.root).as_posix()
            reasons[out.sample.name] = f"the same image as {name} ({stays.sample.split})" + (
                "" if np.array_equal(masks[0], masks[1]) else "; THEIR MASKS DIFFER"
            )
    return reasons


def _check_target(report: CheckReport, folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already", hint="name a folder that is not there, or empty")
    inside = folder.resolve().is_relative_to(report.root.resolve())
    if inside:
        raise UsageError(
            f"{folder} lies in {report.root}, and would become a part of the data",
            hint="name a folder outside of it",
        )
    if report.format in REFUSED:
        what, hint = REFUSED[report.format]
        raise UsageError(
            f"--fix copies images in files of their own, and {report.root} holds {what}", hint=hint
        )
    strange = [i.sample.image for i in report.inspections if i.sample.image.suffix.lower() not in SUFFIXES]
    if strange:
        raise UsageError(
            f"--fix copies images in files of their own, and that of {strange[0].name} lies in another file",
            hint="save the images as files",
        )


def _plan(report: CheckReport, settings: DataSettings) -> _Plan:
    """What is put right: the findings of the check that name --fix."""
    index, changes = report.usable, []
    classes, inverted = index.classes, False
    ignored: tuple[int, ...] = ()
    found = {finding.code for finding in report.findings} - set(settings.allow)
    reader = index.reader
    if isinstance(reader, FileReader):
        stored: Counter[int] = Counter()
        for inspection in report.inspections:
            stored.update(inspection.stored)
        number = is_off_by_one(reader.coding, stored) if "off-by-one-labels" in found else None
        if number is not None:
            values = {value: value - 1 for value in range(1, number + 1)} | {IGNORE_INDEX: IGNORE_INDEX}
            reader = replace(reader, coding=replace(reader.coding, values=values))
            classes = _without_first(classes, number)
            changes.append(f"values 1 to {number} became classes 0 to {number - 1}")
        if "interpolated-masks" in found:
            ignored = tuple(interpolated_values(reader.coding, report.inspections))
            changes.append(
                f"pixels with values left by interpolation are ignored: {', '.join(map(str, ignored))}"
            )
        if "value-outside-classes" in {finding.code for finding in report.findings}:
            changes.append("values that mean no class are ignored")
        if "soft-masks" in found:
            changes.append(f"grey masks became class numbers: foreground is above {reader.coding.threshold}")
        reader = replace(reader, tolerant=True)
        index = replace(index, reader=reader)
    if "inverted-masks" in found and looks_inverted(report.inspections) is not None:
        inverted = True
        changes.append(f"masks were inverted: {' and '.join(classes.names)} changed places")
    return _Plan(index=index, classes=classes, inverted=inverted, ignored=ignored, changes=tuple(changes))


def _without_first(classes: Classes, number: int) -> Classes:
    """The K classes of values 1..K: as stated, or the names of class 1 to K."""
    if classes.num_classes == number:
        return classes
    return replace(classes, names=classes.names[1 : number + 1], palette=classes.palette[1 : number + 1])


def _why_left_out(inspection: Inspection) -> str:
    for path, reason in inspection.unreadable:
        return f"{path.name}: {reason}"
    return "the mask has another size"


def _write(
    plan: _Plan, samples: list[Sample], left_out: list[str], folder: Path, progress: Progress | None
) -> None:
    names = _file_names(samples)
    for part in ("images", "masks"):
        (folder / part).mkdir()

    def one(item: tuple[Sample, str]) -> None:
        sample, name = item
        shutil.copyfile(sample.image, folder / "images" / f"{name}{sample.image.suffix.lower()}")
        Pillow.fromarray(_mask(plan, sample)).save(folder / "masks" / f"{name}.png")

    map_threads(one, list(zip(samples, names, strict=True)), progress)
    with (folder / "data.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "mask", "split", "group"])
        for sample, name in zip(samples, names, strict=True):
            image = f"images/{name}{sample.image.suffix.lower()}"
            table.writerow([image, f"masks/{name}.png", sample.split or "", sample.group or ""])
    description: dict[str, Any] = {
        "classes": list(plan.classes.names),
        "masks": "index",
        "ignore_index": IGNORE_INDEX,
    }
    if len(set(plan.classes.palette)) == len(plan.classes.palette):
        description["palette"] = [list(colour) for colour in plan.classes.palette]
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True, default_flow_style=None)
    (folder / "dataset.yaml").write_text(text, encoding="utf-8")
    lines = [f"corrected copy of {plan.index.root}", f"{number_of(len(samples), 'pair')} written"]
    lines += [*plan.changes, *(f"left out: {reason}" for reason in left_out)]
    (folder / "changes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _mask(plan: _Plan, sample: Sample) -> Mask:
    mask = plan.index.reader.mask(sample)
    if plan.ignored and isinstance(plan.index.reader, FileReader) and sample.mask is not None:
        stored = plan.index.reader.read(sample.mask).values
        grey = stored if stored.ndim == 2 else stored[:, :, 0]
        mask = np.where(np.isin(grey, plan.ignored), np.uint8(IGNORE_INDEX), mask)
    if plan.inverted:
        mask = np.where(mask == IGNORE_INDEX, mask, np.uint8(1) - np.minimum(mask, 1)).astype(np.uint8)
    return mask


def _file_names(samples: list[Sample]) -> list[str]:
    """A name for each sample that is no path and differs from all others on any system."""
    used: set[str] = set()
    names = []
    for sample in samples:
        plain = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in sample.name)
        plain = plain.strip(". ") or "sample"
        name, count = plain, 1
        while same_name(name) in used:
            count += 1
            name = f"{plain}~{count}"
        used.add(same_name(name))
        names.append(name)
    return names
