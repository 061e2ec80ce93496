"""COCO annotation files: polygons and run lengths beside a folder of images.

    annotations/instances_train2017.json   train2017/000000000009.jpg
    annotations.json                       images/0.jpg
    train/_annotations.coco.json           train/0.jpg

Class 0 is the background; the categories follow by their ids. Where objects overlap, the smaller one lies
on top. Regions marked as crowd are ignored, except where single objects are drawn in them. Images without
an object are background all over.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from segtune.data.assemble import choose_samples
from segtune.data.base import Classes, DataIndex, Finding, Sample, Severity
from segtune.data.coco_file import CocoFile, looks_like_coco, read_coco
from segtune.data.coco_reader import CocoReader, Drawing
from segtune.data.coding import MAX_CLASSES
from segtune.data.description import read_description
from segtune.data.findings import file_finding
from segtune.data.known import restate_classes
from segtune.data.matching import list_files, path_inside, subfolders
from segtune.data.palette import default_palette
from segtune.data.settings import DataSettings
from segtune.data.split import SPLIT_WORDS
from segtune.errors import DataError, UsageError
from segtune.settings import Settings

BACKGROUND = "background"
PREFERRED = "instances_*"
"""Files of COCO's own folder that describe objects; the others hold captions or keypoints."""


class CocoSettings(Settings):
    """Which files, and what becomes a class."""

    annotations: str | None = Field(None, description="glob of the names of the annotation files to read")
    categories: tuple[str, ...] | None = Field(
        None, description="names of the categories to keep; the others become background"
    )
    supercategories: bool = Field(False, description="classes are the supercategories")


class Coco:
    """The format of COCO annotation files."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        files = _files(root)
        if not files:
            return None
        more = f" and {len(files) - 1} more hold" if len(files) > 1 else " holds"
        return f"{files[0].name}{more} images, annotations and categories"

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Reads the annotation files; pixels are drawn when a mask is asked for.

        Raises:
            DataError: the files are damaged or contradict each other, or their images are not there.
            UsageError: the settings do not fit.
        """
        options = CocoSettings.model_validate(settings.options)
        folder = root if root.is_dir() else root.parent
        files = [read_coco(path) for path in _choose(root, options.annotations)]
        if settings.values is not None:
            raise UsageError(
                "data.values is stated, but COCO files hold no mask values",
                hint="data.options.categories chooses categories",
            )
        names, labels, evidence = _classes(files, options)
        samples: list[Sample] = []
        findings: list[Finding] = []
        drawings: dict[str, Drawing] = {}
        for place, file in enumerate(files):
            own, noticed = _samples(folder, place, file)
            findings += [*noticed, *_file_findings(folder, file)]
            for sample, drawing in own:
                name = _unused(sample.name, drawings)
                samples.append(Sample(name=name, image=sample.image, mask=file.path, split=sample.split))
                drawings[name] = drawing
        if not any(file.objects for file in files):
            number = sum(file.num_annotations for file in files)
            raise DataError(
                f"{root}: none of {number} annotations has a segmentation",
                hint="boxes alone say nothing of pixels; export polygons or masks",
            )
        if not samples:
            raise DataError(
                f"{folder}: none of the images of {files[0].path.name} is there, e.g. "
                f"{files[0].images[0].file_name if files[0].images else 'it lists none'}",
                hint="put them beside the file, or into images/",
            )
        kept, chosen = choose_samples(folder, samples, settings)
        description = read_description(folder)
        classes = Classes(names=names, palette=default_palette(len(names)))
        total = sum(len(objects) for file in files for objects in file.objects.values())
        bare = sum(not drawings[sample.name].objects for sample in kept)
        lines = [
            f"{', '.join(file.path.name for file in files)}: {len(samples)} images, {total} objects",
            *chosen,
            *evidence,
            f"{len(names)} classes; smaller objects lie on top, crowds are ignored",
        ]
        if bare:
            lines.append(f"{bare} images without an object are {names[0]} all over")
        return DataIndex(
            root=folder,
            format="coco",
            samples=tuple(kept),
            classes=restate_classes("COCO files", classes, settings, description),
            reader=CocoReader(drawings=drawings, labels=labels),
            evidence=tuple(lines),
            findings=tuple(findings),
            details={"masks": "objects", "categories": {str(key): label for key, label in labels[0].items()}},
        )


def _files(root: Path) -> list[Path]:
    """The annotation files of a folder: in it, in annotations/, or in the folders of splits."""
    if root.is_file():
        return [root] if root.suffix.lower() == ".json" and looks_like_coco(root) else []
    folders = [root, *(f for f in subfolders(root) if f.name.lower() in {"annotations", *SPLIT_WORDS})]
    # A folder of many JSON files describes one image with each.
    listed = {folder: list_files(folder, {".json"}) for folder in folders}
    return [path for paths in listed.values() if len(paths) <= 50 for path in paths if looks_like_coco(path)]


def _choose(root: Path, glob: str | None) -> list[Path]:
    """At most one file for each split.

    Raises:
        DataError: there is none, or the choice is not clear.
    """
    files = _files(root)
    matching = [path for path in files if glob is None or fnmatch.fnmatch(path.name, glob)]
    if files and not matching:
        raise DataError(
            f"{root}: no annotation file matches data.options.annotations={glob!r}",
            hint=f"there are {', '.join(path.name for path in files)}",
        )
    chosen = [path for path in matching if fnmatch.fnmatch(path.name, PREFERRED)] or matching
    if not chosen:
        raise DataError(
            f"{root}: no file with images, annotations and categories", hint="put the .json into the folder"
        )
    splits = Counter(_split(path, root) for path in chosen)
    if max(splits.values()) > 1 or (None in splits and len(splits) > 1):
        raise DataError(
            f"{root}: it is not clear which annotation files to read: "
            + ", ".join(path.name for path in chosen),
            hint="data.options.annotations is a glob of those to read, e.g. instances_*2017.json",
        )
    return chosen


def _split(path: Path, root: Path) -> str | None:
    """The split that a file's name, or its folder's, says."""
    words = [word for word in re.split(r"[^a-z]+", path.stem.lower()) if word]
    if path.parent != root:
        words.append(path.parent.name.lower())
    return next((SPLIT_WORDS[word] for word in reversed(words) if word in SPLIT_WORDS), None)


def _classes(
    files: Sequence[CocoFile], options: CocoSettings
) -> tuple[tuple[str, ...], list[dict[object, int]], list[str]]:
    """Class names; for each file category id -> class; evidence."""
    used = {(i, thing.category) for i, f in enumerate(files) for all_ in f.objects.values() for thing in all_}
    evidence = []
    names: dict[str, int] = {BACKGROUND: 0}
    labels: list[dict[object, int]] = []
    dropped: dict[str, None] = {}
    known: dict[str, None] = {}
    for place, file in enumerate(files):
        above = {parent for name, parent in file.categories.values() if parent != name}
        own: dict[object, int] = {}
        for key, (name, parent) in file.categories.items():
            shown = parent if options.supercategories else name
            known.setdefault(shown)
            if name in above and (place, key) not in used:
                # Some exporters list the project itself as a category of everything.
                dropped.setdefault(name)
            else:
                kept = options.categories is None or shown in options.categories
                is_class = kept and shown.strip("_").lower() != BACKGROUND
                own[key] = names.setdefault(shown, len(names)) if is_class else 0
        labels.append(own)
    absent = [name for name in options.categories or () if name not in known]
    if absent:
        raise UsageError(
            f"data.options.categories: there is no category {absent[0]!r}",
            hint=f"there are {', '.join(list(known)[:20])}{', ...' if len(known) > 20 else ''}",
        )
    if not 2 <= len(names) <= MAX_CLASSES:
        raise DataError(
            f"{files[0].path}: {len(names) - 1} categories make {len(names)} classes",
            hint=f"2 to {MAX_CLASSES} are possible; data.options.categories chooses some",
        )
    if dropped:
        evidence.append(f"not a class, as it only stands above others: {', '.join(dropped)}")
    return tuple(names), labels, evidence


def _samples(root: Path, place: int, file: CocoFile) -> tuple[list[tuple[Sample, Drawing]], list[Finding]]:
    """The images of a file that are there, and findings about the others.

    Raises:
        DataError: a name leads out of the folder.
    """
    split = _split(file.path, root)
    start = _start(root, file)
    there: dict[Path, frozenset[str]] = {}
    found, missing = [], []
    for image in file.images:
        path = path_inside(root, image.file_name, start)
        if path is None:
            raise DataError(
                f"{file.path}: the image {image.file_name!r} leads out of {root}",
                hint="names are relative to the folder of images",
            )
        if path.parent not in there:
            names = path.parent.iterdir() if path.parent.is_dir() else ()
            there[path.parent] = frozenset(entry.name for entry in names)
        if path.name not in there[path.parent]:
            missing.append(path)
            continue
        name = path.relative_to(start).with_suffix("").as_posix() if path.is_relative_to(start) else path.stem
        sample = Sample(name=name, image=path, mask=file.path, split=split)
        found.append((sample, Drawing(place, image.size, file.objects.get(image.id, ()))))
    findings = file_finding(
        Severity.ERROR,
        "missing-file",
        f"images listed in {file.path.name} do not exist",
        root,
        missing,
        "copy them, or remove them from the file",
    )
    return found, findings


def _start(root: Path, file: CocoFile) -> Path:
    """The folder that the names of a file's images count from: the first that has one of them."""
    stem = file.path.stem.removeprefix("instances_").removeprefix("stuff_")
    split = _split(file.path, root)
    places = [file.path.parent, root, *(root / top for top in (stem, split or "", "images", "data"))]
    places += [root / "images" / below for below in (stem, split or "")]
    places += [file.path.parent / "images", root / f"{split}2017", root / f"{split}2014"]
    for place in dict.fromkeys(places):
        for image in file.images[:20]:
            path = path_inside(root, image.file_name, place)
            if path is not None and path.is_file():
                return place
    return file.path.parent


def _unused(name: str, taken: Mapping[str, object]) -> str:
    if name not in taken:
        return name
    return next(new for number in range(2, len(taken) + 3) if (new := f"{name}~{number}") not in taken)


def _file_findings(root: Path, file: CocoFile) -> list[Finding]:
    """What is wrong with annotations."""

    def finding(severity: Severity, code: str, count: int, what: str, hint: str) -> list[Finding]:
        if not count:
            return []
        where = file.path.relative_to(root).as_posix()
        message = f"{file.path.name}: {what} ({count} of {file.num_annotations})"
        return [Finding(severity=severity, code=code, message=message, files=(where,), hint=hint)]

    shown = ", ".join(file.uncategorised[:3])
    return [
        *finding(
            Severity.ERROR,
            "unknown-category",
            len(file.uncategorised),
            f"annotations of categories that are not listed are left out, e.g. {shown}",
            "list the categories",
        ),
        *finding(
            Severity.WARNING,
            "annotation-without-image",
            len(file.strangers),
            f"annotations of images that are not listed are left out, e.g. {', '.join(file.strangers[:3])}",
            "list the images, or remove the annotations",
        ),
        *finding(
            Severity.WARNING,
            "annotation-without-region",
            file.boxes_only + file.degenerate,
            "annotations without polygon or run lengths, or of fewer than three points, are left out",
            "draw the regions; boxes alone say nothing of pixels",
        ),
    ]
