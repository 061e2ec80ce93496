"""PASCAL VOC trees: JPEGImages, SegmentationClass and the lists of ImageSets/Segmentation.

    VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg
    VOCdevkit/VOC2012/SegmentationClass/2007_000032.png
    VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt

Folders called VOC2007, VOC2012, ... have the 21 classes of PASCAL VOC, whose border colour is ignored; other
trees name theirs in `labelmap.txt` (name:red,green,blue:...) or `class_names.txt`, or are looked at.
Several years side by side are read together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from segtune.data.assemble import assemble
from segtune.data.base import Classes, Colour, DataIndex, Finding, Sample, Severity
from segtune.data.findings import file_finding
from segtune.data.known import KnownCoding
from segtune.data.matching import by_key, list_files, match, subfolders
from segtune.data.palette import VOC as VOC_PALETTE
from segtune.data.palette import default_palette
from segtune.data.settings import DataSettings
from segtune.data.split import SPLIT_WORDS
from segtune.errors import DataError
from segtune.settings import Settings
from segtune.types import IGNORE_INDEX

IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
MAX_BYTES = 100_000_000
_YEAR = re.compile(r"VOC20\d\d")


class VocSettings(Settings):
    """Which masks."""

    masks: str = Field("SegmentationClass", description="folder of masks, e.g. SegmentationClassAug")


class Voc:
    """The format of PASCAL VOC trees."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        trees = _trees(root)
        if not trees:
            return None
        places = ", ".join(tree.relative_to(root).as_posix() for tree in trees).replace(".", "")
        return f"there are {IMAGES}/, {MASKS}/ and {LISTS}/" + (f" in {places}" if places else "")

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Reads the lists; no mask is opened where the classes are known.

        Raises:
            DataError: there is no such tree, a list leads out of it, or no image has a mask.
        """
        options = VocSettings.model_validate(settings.options)
        trees = _trees(root)
        if not trees:
            raise DataError(
                f"{root}: no folder with {IMAGES}/, {MASKS}/ and {LISTS}/",
                hint="name the folder of the year (VOC2012), or the VOCdevkit above it",
            )
        samples: list[Sample] = []
        findings: list[Finding] = []
        for tree in trees:
            own, noticed = _read_tree(root, tree, options.masks, prefix=len(trees) > 1)
            samples += own
            findings += noticed
        if not samples:
            raise DataError(
                f"{root}: no image of the lists has a mask in {options.masks}/",
                hint="data.options.masks names the folder of masks",
            )
        known = _classes(trees)
        evidence = [f"{len(samples)} images with {options.masks}, listed in {LISTS}"]
        return assemble(
            root,
            format="voc",
            samples=samples,
            settings=settings,
            evidence=evidence,
            findings=findings,
            known=known,
        )


def _trees(root: Path) -> list[Path]:
    """The trees of a folder: itself, those in it, or those in its VOCdevkit."""
    if not root.is_dir():
        return []
    if _is_tree(root):
        return [root]
    below = [path for path in subfolders(root) if _is_tree(path)]
    return below or [path for path in subfolders(root / "VOCdevkit") if _is_tree(path)]


def _is_tree(folder: Path) -> bool:
    has_masks = any((folder / f"{MASKS}{ending}").is_dir() for ending in ("", "Aug"))
    return (folder / IMAGES).is_dir() and has_masks and any(list_files(folder / LISTS, {".txt"}))


def _read_tree(root: Path, tree: Path, masks: str, *, prefix: bool) -> tuple[list[Sample], list[Finding]]:
    if Path(masks).name != masks:
        raise DataError(f"data.options.masks={masks!r} is no folder beside {IMAGES}")
    folder = tree / masks
    if not folder.is_dir():
        there = ", ".join(path.name for path in subfolders(tree))
        raise DataError(f"{tree}: there is no {masks}/", hint=f"data.options.masks names one of: {there}")
    images = by_key((path.stem, path) for path in list_files(tree / IMAGES))
    files = by_key((path.stem, path) for path in list_files(folder))
    splits, unknown, twice = _lists(tree)
    # The masks of a test split may not be published; then its list counts for nothing.
    given = {split for name, split in splits.items() if name in files}
    splits = {name: split for name, split in splits.items() if split in given}
    listed = {name: images[name] for name in splits if name in images}
    keys, findings = match(root, listed, {name: path for name, path in files.items() if name in splits})
    if unknown and not splits:
        # Lists that say no split still say which images count.
        listed = {name: images[name] for name in unknown if name in images}
        keys, findings = match(root, listed, files)
    absent = [name for name in splits if name not in images]
    if absent:
        findings += file_finding(
            Severity.ERROR,
            "missing-file",
            f"images listed in {LISTS} do not exist",
            root,
            [tree / IMAGES / name for name in absent],
            "correct the names, or remove the lines",
        )
    if twice:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                code="sample-in-two-splits",
                message=f"{len(twice)} images stand in more than one of train.txt, val.txt and test.txt: "
                + ", ".join(twice[:3]),
                files=tuple(twice),
                hint="keep each in one list",
            )
        )
    names = {key: f"{tree.name}/{key}" if prefix else key for key in keys}
    return [
        Sample(name=names[key], image=images[key], mask=files[key], split=splits.get(key)) for key in keys
    ], findings


def _lists(tree: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """Split by name; names in lists that are no split; names in two splits."""
    splits: dict[str, str] = {}
    unknown: dict[str, None] = {}
    twice = []
    for path in list_files(tree / LISTS, {".txt"}):
        split = SPLIT_WORDS.get(path.stem.lower().removesuffix("_aug").removesuffix("aug"))
        for name in _names(path):
            if split is None:
                unknown.setdefault(name)
            elif splits.setdefault(name, split) != split:
                twice.append(name)
    return splits, list(unknown), twice


def _names(path: Path) -> list[str]:
    """The first word of each line.

    Raises:
        DataError: the list is too large or no text, or a name leads out of the folder of images.
    """
    names = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        name = words[0]
        if "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
            raise DataError(
                f"{path}, line {number}: {name!r} is no name of an image",
                hint=f"lines are names of files in {IMAGES}/, without their ending",
            )
        names.append(name)
    return names


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES:,} bytes", hint="is this a list of names?")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as text: {error}", hint="save it as UTF-8") from None


def _classes(trees: Sequence[Path]) -> KnownCoding | None:
    """What the masks mean, or None where that has to be found out."""
    if all(_YEAR.fullmatch(tree.name) for tree in trees):
        return _coding(
            "masks of PASCAL VOC", VOC_PALETTE.names, VOC_PALETTE.colours, ignored=VOC_PALETTE.ignored
        )
    for tree in trees:
        if (tree / "labelmap.txt").is_file():
            return _labelmap(tree / "labelmap.txt")
        if (tree / "class_names.txt").is_file():
            names = [line.strip() for line in _text(tree / "class_names.txt").splitlines() if line.strip()]
            names = [name for name in names if name != "__ignore__"]
            _check_names(tree / "class_names.txt", names)
            return _coding("masks with class_names.txt", names, default_palette(len(names)), by_colour=False)
    return None


def _labelmap(path: Path) -> KnownCoding:
    """The classes of a `labelmap.txt`, in its order.

    Raises:
        DataError: a line is none of name:red,green,blue:...
    """
    names: list[str] = []
    colours: list[Colour] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        parts = rest.partition(":")[0].split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) <= 255 for part in parts):
            raise DataError(
                f"{path}, line {number}: {line.strip()[:60]!r} is no class",
                hint="lines are name:red,green,blue::",
            )
        names.append(name.strip())
        colours.append((int(parts[0]), int(parts[1]), int(parts[2])))
    _check_names(path, names)
    if len(set(colours)) < len(colours):
        raise DataError(f"{path}: two classes have the same colour", hint="give each its own")
    coding = _coding("masks with labelmap.txt", names, colours, ignored=VOC_PALETTE.ignored)
    # Its masks may be palette files in an order of their own: colours decide.
    return KnownCoding(title=coding.title, classes=coding.classes, colours=coding.colours)


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if len(names) < 2 or len(names) > IGNORE_INDEX - 1 or twice:
        said = f"{twice[0]!r} stands twice" if twice else f"{len(names)} classes"
        raise DataError(f"{path}: {said}", hint="2 to 254 classes, each with its own name")


def _coding(
    title: str,
    names: Sequence[str],
    colours: Sequence[Colour],
    *,
    ignored: Sequence[Colour] = (),
    by_colour: bool = True,
) -> KnownCoding:
    by_colours = dict.fromkeys(ignored, IGNORE_INDEX) | {colour: i for i, colour in enumerate(colours)}
    return KnownCoding(
        title=title,
        classes=Classes(names=tuple(names), palette=tuple(colours)),
        values={i: i for i in range(len(names))} | {IGNORE_INDEX: IGNORE_INDEX},
        colours=by_colours if by_colour else {},
    )
