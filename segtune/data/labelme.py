"""labelme: one JSON file for each image, with polygons, rectangles, circles and masks.

    pictures/a.jpg   pictures/a.json

Class 0 is the background, `_background_`; what is labelled `__ignore__` is ignored. The other classes are
those of `labels.txt` in their order, or all labels by name; where classes are stated, labels are looked up
among them. Shapes cover those before them in the file, as in labelme's own export. An image that is not
there is taken out of the JSON file, where it holds one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from segtune.data.assemble import choose_samples
from segtune.data.base import Classes, DataIndex, Finding, Sample, Severity
from segtune.data.coding import MAX_CLASSES
from segtune.data.description import read_description
from segtune.data.files import SUFFIXES, map_threads
from segtune.data.findings import file_finding
from segtune.data.known import restate_classes
from segtune.data.labelme_file import (
    BACKGROUND,
    IGNORED,
    LabelmeFile,
    LabelmeReader,
    looks_like_labelme,
    read_labelme,
)
from segtune.data.matching import list_files, path_inside, subfolders
from segtune.data.palette import default_palette
from segtune.data.settings import DataSettings
from segtune.data.split import SPLIT_WORDS
from segtune.errors import DataError, UsageError

LABELS = "labels.txt"


class Labelme:
    """The format of labelme."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        folders = _folders(root)
        if not folders:
            return None
        count = sum(len(list_files(folder, {".json"})) for folder in folders)
        places = ", ".join(f"{folder.relative_to(root).as_posix()}/" for folder in folders[:4])
        return f"{count} JSON files with shapes" + (f" in {places}" if places != "./" else "")

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Reads every JSON file; shapes are drawn when a mask is asked for.

        Raises:
            DataError: a file is damaged or leads out of the folder, or no image is there.
            UsageError: the stated classes are not those of the files.
        """
        paths = [path for folder in _folders(root) for path in list_files(folder, {".json"})]
        paths = [path for path in paths if looks_like_labelme(path)]
        if not paths:
            raise DataError(
                f"{root}: no JSON file with shapes", hint="put the files of labelme into one folder"
            )
        files = map_threads(read_labelme, paths)
        samples: list[Sample] = []
        missing: list[Path] = []
        kept: dict[str, LabelmeFile] = {}
        for file in files:
            image = _image(root, file)
            if image is None:
                missing.append(file.path)
                continue
            name = file.path.relative_to(root).with_suffix("").as_posix()
            splits = [SPLIT_WORDS.get(part.lower()) for part in file.path.relative_to(root).parts[:-1]]
            split = next((split for split in splits if split is not None), None)
            samples.append(Sample(name=name, image=image, mask=file.path, split=split))
            kept[name] = file
        if not samples:
            raise DataError(
                f"{root}: none of the images of {len(files)} JSON files is there",
                hint="put the images beside the JSON files, or save them with the image in them",
            )
        findings = file_finding(
            Severity.ERROR,
            "missing-file",
            "files whose image does not exist",
            root,
            missing,
            "put the images beside the JSON files, or remove the files",
        )
        names, labels, evidence = _classes(root, files, settings)
        findings += _unknown(root, files, labels)
        samples, chosen = choose_samples(root, samples, settings)
        count = sum(len(file.shapes) for file in files)
        return DataIndex(
            root=root,
            format="labelme",
            samples=tuple(samples),
            classes=restate_classes(
                "labelme files",
                Classes(names=names, palette=default_palette(len(names))),
                settings,
                read_description(root),
            ),
            reader=LabelmeReader(files=kept, labels=labels),
            evidence=(f"{len(files)} JSON files with {count} shapes", *chosen, evidence),
            findings=tuple(findings),
            details={"masks": "shapes", "labels": labels},
        )


def _folders(root: Path) -> list[Path]:
    """The folders of labelme's files: the root, or those in it."""
    if not root.is_dir():
        return []
    found = []
    for folder in [root, *subfolders(root)]:
        first = list_files(folder, {".json"})[:3]
        if first and any(looks_like_labelme(path) for path in first):
            found.append(folder)
    return found


def _image(root: Path, file: LabelmeFile) -> Path | None:
    """Where the image of a file lies; the file itself where it holds the image; None where it is lost.

    Raises:
        DataError: the image is not beside the file, and its path leads out of the folder.
    """
    named = path_inside(root, file.image_path, file.path.parent)
    if named is not None and named.suffix.lower() in SUFFIXES and named.is_file():
        return named
    beside = [path for path in list_files(file.path.parent) if path.stem == file.path.stem]
    if beside:
        return beside[0]
    if file.has_image:
        return file.path
    if named is None:
        raise DataError(
            f"{file.path}: the image {file.image_path!r} leads out of {root}",
            hint="put the images beside the JSON files",
        )
    return None


def _classes(
    root: Path, files: Sequence[LabelmeFile], settings: DataSettings
) -> tuple[tuple[str, ...], dict[str, int], str]:
    """Class names; class by label; evidence."""
    if settings.values is not None:
        raise UsageError(
            "data.values is stated, but labelme files hold no mask values",
            hint=f"data.classes or {LABELS} names the labels",
        )
    found = sorted({shape.label for file in files for shape in file.shapes} - {BACKGROUND, IGNORED})
    if settings.classes is not None:
        names = settings.classes
        source = "as stated"
    elif (root / LABELS).is_file():
        names = _listed(root / LABELS)
        source = f"those of {LABELS}"
    else:
        names = (BACKGROUND, *found)
        source = "all labels, by name"
    if not 2 <= len(names) <= MAX_CLASSES:
        raise DataError(
            f"{root}: the labels make {len(names)} classes", hint=f"2 to {MAX_CLASSES} are possible"
        )
    return names, {name: label for label, name in enumerate(names)}, f"{len(names)} classes: {source}"


def _listed(path: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as text: {error}", hint="save it as UTF-8") from None
    names = [line for line in lines if line and line not in (IGNORED, BACKGROUND)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: {twice[0]!r} stands twice", hint="keep one line for each label")
    return (BACKGROUND, *names)


def _unknown(root: Path, files: Sequence[LabelmeFile], labels: dict[str, int]) -> list[Finding]:
    """Shapes that make no pixels, or whose label is no class."""
    known = {*labels, IGNORED, BACKGROUND}
    strange = sorted({shape.label for file in files for shape in file.shapes} - known)
    findings = file_finding(
        Severity.ERROR,
        "unknown-category",
        f"files with labels that are no class, left out: {', '.join(strange[:5])}",
        root,
        [file.path for file in files if any(shape.label in strange for shape in file.shapes)],
        f"name them in {LABELS} or in data.classes",
    )
    return findings + file_finding(
        Severity.WARNING,
        "annotation-without-region",
        "files with points or lines, which cover no pixels and are left out",
        root,
        [file.path for file in files if file.thin],
        "draw polygons",
    )
