"""Folders of images and masks that belong together by name.

Images and masks stand in folders called so (images, imgs, JPEGImages, img_dir, ... and masks, labels,
annotations, SegmentationClass, ann_dir, ...), or side by side in one folder and tell themselves apart by
a part of the name (`7_image.png`, `7_mask.png`). Folders called train, val or test (valid, validation,
testing, ...) may lie above or below; further sub folders are kept. Names match exactly, or once such
parts are taken off.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segtune.data.assemble import assemble
from segtune.data.base import DataIndex, Finding, Sample, Severity
from segtune.data.files import SUFFIXES
from segtune.data.findings import file_finding
from segtune.data.settings import DataSettings
from segtune.data.split import SPLIT_WORDS
from segtune.errors import DataError

IMAGE_WORDS = frozenset(
    {
        "image",
        "images",
        "img",
        "imgs",
        "jpegimages",
        "imagefiles",
        "photos",
        "photo",
        "rgb",
        "input",
        "inputs",
        "picture",
        "pictures",
        "frames",
    }
)
MASK_WORDS = frozenset(
    {
        "mask",
        "masks",
        "label",
        "labels",
        "annotation",
        "annotations",
        "annot",
        "annots",
        "ann",
        "anns",
        "gt",
        "groundtruth",
        "target",
        "targets",
        "segmentation",
        "segmentations",
        "segmentationclass",
        "segmentationclassaug",
        "seg",
        "segs",
    }
)
IMAGE_PARTS = frozenset({"image", "img", "rgb", "sat", "photo", "input"})
MASK_PARTS = frozenset(
    {
        "mask",
        "masks",
        "label",
        "labels",
        "gt",
        "target",
        "seg",
        "segmentation",
        "groundtruth",
        "annotation",
        "annot",
    }
)

_PIECES = re.compile(r"[_\-. ]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_PARTS = "|".join(sorted(IMAGE_PARTS | MASK_PARTS))
_ENDS = re.compile(rf"^(?:{_PARTS})(?:[_\-. ]+|$)|(?:^|[_\-. ]+)(?:{_PARTS})$", re.IGNORECASE)


@dataclass(frozen=True)
class _File:
    path: Path
    role: str | None
    """"image", "mask" or None."""
    split: str | None
    folders: tuple[str, ...]
    """Sub folders that say neither role nor split."""
    core: str
    """The name without its ending and without parts that say what it is."""

    @property
    def stem(self) -> str:
        return self.path.stem


class Folder:
    """The format of image and mask folders."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        if not root.is_dir():
            return None
        files = _files(root)
        images = [file for file in files if file.role == "image"]
        masks = [file for file in files if file.role == "mask"]
        if not images or not masks:
            return None
        return f"{_places(root, images)} and {_places(root, masks)}"

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Pairs images with masks by name and finds out how the masks are coded.

        Raises:
            DataError: no image has a mask.
        """
        samples, evidence, findings = paired_samples(root)
        return assemble(
            root,
            format="folder",
            samples=samples,
            settings=settings,
            evidence=evidence,
            findings=findings,
        )


def paired_samples(root: Path) -> tuple[list[Sample], list[str], list[Finding]]:
    """Pairs images with masks by name: samples, evidence and findings.

    Raises:
        DataError: no image has a mask.
    """
    files = _files(root) if root.is_dir() else []
    images = [file for file in files if file.role == "image"]
    masks = [file for file in files if file.role == "mask"]
    findings = _duplicates(root, images, "images") + _duplicates(root, masks, "masks")
    pairs, lone_images, lone_masks = _pair(images, masks)
    if not pairs:
        raise DataError(
            f"{root}: {len(images)} images and {len(masks)} masks, but no two of the same name"
            + _example(images, masks),
            hint="rename them alike, or list the pairs in a CSV file with the columns image,mask",
        )
    findings += file_finding(
        Severity.ERROR if len(lone_images) > len(pairs) else Severity.WARNING,
        "unmatched-file",
        "images without a mask are left out",
        root,
        [file.path for file in lone_images],
        "add the masks, rename them like the images, or remove the images",
    )
    findings += file_finding(
        Severity.WARNING,
        "unmatched-file",
        "masks without an image are left out",
        root,
        [file.path for file in lone_masks],
        "add the images, or remove the masks",
    )
    splits = {image.split for image, _ in pairs}
    if None in splits and len(splits) > 1:
        stray = [image.path for image, _ in pairs if image.split is None]
        pairs = [pair for pair in pairs if pair[0].split is not None]
        findings += file_finding(
            Severity.WARNING,
            "sample-without-split",
            "images lie outside of the split folders and are left out",
            root,
            stray,
            "move them into train, val or test",
        )
    evidence = [
        f"{len(pairs)} pairs of image and mask by name" + _endings(pairs),
    ]
    return _samples(pairs), evidence, findings


def _files(root: Path) -> list[_File]:
    """Every image file below the root with what its place and name say, in a fixed order."""
    found = []
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        # Links may lead back up; a folder that was seen is not entered again.
        real = Path(folder).resolve()
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__")))
        found += [
            Path(folder) / name
            for name in sorted(names)
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    files = [_classify(root, path) for path in found]
    roles = Counter(file.role for file in files)
    if roles["mask"] and not roles["image"]:
        # train/ beside train_labels/: what lies in no folder of masks is an image.
        files = [_with_role(file, file.role or "image") for file in files]
    elif not roles["mask"] and not roles["image"]:
        files = [_with_role(file, _role_by_name(file.stem)) for file in files]
    return files


def _with_role(file: _File, role: str | None) -> _File:
    return _File(file.path, role, file.split, file.folders, file.core)


def _classify(root: Path, path: Path) -> _File:
    role = split = None
    folders = []
    for part in path.relative_to(root).parts[:-1]:
        part_role, part_split = _folder_meaning(part)
        role, split = part_role or role, part_split or split
        if part_role is None and part_split is None:
            folders.append(part)
    return _File(path, role, split, tuple(folders), _core(path.stem))


def _folder_meaning(name: str) -> tuple[str | None, str | None]:
    """What a folder's name says of the role and the split of the files in it."""
    if name.lower().endswith("annot") and name.lower()[:-5] in SPLIT_WORDS:
        return "mask", SPLIT_WORDS[name.lower()[:-5]]
    whole = _PIECES.sub("", name.lower())
    pieces = [piece.lower() for piece in _PIECES.split(_CAMEL.sub("_", name))]
    pieces = [piece for piece in pieces if piece not in ("dir", "folder")] or [whole]
    role = split = None
    for word in (whole, pieces[0], pieces[-1]):
        if word in MASK_WORDS:
            role = "mask"
        elif word in IMAGE_WORDS and role is None:
            role = "image"
        split = split or SPLIT_WORDS.get(word)
    if role is None and split is not None and len(pieces) > 1:
        # "test_run_3" is nobody's test split.
        return None, None
    return role, split


def _role_by_name(stem: str) -> str:
    pieces = _PIECES.split(stem.lower())
    return "mask" if {pieces[0], pieces[-1]} & MASK_PARTS else "image"


def _core(stem: str) -> str:
    """The name without parts at its ends that say what it is; empty where nothing else is in it."""
    before = None
    while before != stem:
        before = stem
        stem = _ENDS.sub("", stem)
    return stem


def _pair(
    images: Sequence[_File], masks: Sequence[_File]
) -> tuple[list[tuple[_File, _File]], list[_File], list[_File]]:
    """Pairs by the same stem, then by the same core; sub folders have to agree unless the name is unique."""
    pairs: dict[Path, tuple[_File, _File]] = {}
    left_images, left_masks = _first_of(images), _first_of(masks)
    for key in (
        lambda file: (file.split, file.folders, file.stem),
        lambda file: (file.split, file.folders, file.core),
        lambda file: (file.split, file.stem),
        lambda file: (file.split, file.core),
        lambda file: file.stem,
    ):
        by_key: dict[object, list[_File]] = defaultdict(list)
        claims = Counter(key(image) for image in left_images)
        for mask in left_masks:
            by_key[key(mask)].append(mask)
        for image in left_images:
            candidates = by_key[key(image)]
            if len(candidates) == 1 and claims[key(image)] == 1:
                pairs[image.path] = (image, candidates[0])
        used = {mask.path for _, mask in pairs.values()}
        left_images = [image for image in left_images if image.path not in pairs]
        left_masks = [mask for mask in left_masks if mask.path not in used]
    ordered = [pairs[image.path] for image in images if image.path in pairs]
    return ordered, left_images, left_masks


def _first_of(files: Sequence[_File]) -> list[_File]:
    """Without files that differ from an earlier one in the ending only."""
    first: dict[tuple[Path, str], _File] = {}
    for file in files:
        first.setdefault((file.path.parent, file.stem), file)
    return list(first.values())


def _duplicates(root: Path, files: Sequence[_File], what: str) -> list[Finding]:
    kept = {file.path for file in _first_of(files)}
    return file_finding(
        Severity.ERROR,
        "duplicate-name",
        f"{what} differ from another one in the ending only, and are left out",
        root,
        [file.path for file in files if file.path not in kept],
        "keep one file of each name",
    )


def _samples(pairs: Sequence[tuple[_File, _File]]) -> list[Sample]:
    def short(image: _File) -> str:
        return "/".join([*image.folders, *([image.core] if image.core else [])]) or image.stem

    def longer(image: _File) -> str:
        return "/".join([*([image.split] if image.split else []), *image.folders, image.stem])

    names = [short(image) for image, _ in pairs]
    if len(set(names)) < len(names):
        names = [longer(image) for image, _ in pairs]
    seen: Counter[str] = Counter()
    samples = []
    for name, (image, mask) in zip(names, pairs, strict=True):
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}~{seen[name]}"
        samples.append(Sample(name=unique, image=image.path, mask=mask.path, split=image.split))
    return samples


def _places(root: Path, files: Sequence[_File]) -> str:
    """Where files lie, as text: `train/images`, `val/images` (468 files)."""
    folders = list(dict.fromkeys(file.path.parent.relative_to(root).as_posix() for file in files))
    kind = files[0].role if files else "no"
    if folders == ["."]:
        shown = "in one flat folder"
    else:
        more = f" and {len(folders) - 4} more" if len(folders) > 4 else ""
        shown = "in " + ", ".join(f"{folder}/" for folder in folders[:4]) + more
    return f"{len(files)} {kind}s {shown}"


def _endings(pairs: Sequence[tuple[_File, _File]]) -> str:
    images = sorted({image.path.suffix.lower() for image, _ in pairs})
    masks = sorted({mask.path.suffix.lower() for _, mask in pairs})
    return f" ({'/'.join(images)} with {'/'.join(masks)})"


def _example(images: Sequence[_File], masks: Sequence[_File]) -> str:
    if not images or not masks:
        return ""
    return f", e.g. {images[0].path.name} and {masks[0].path.name}"
