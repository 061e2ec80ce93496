"""NIfTI volumes with masks of the same name: beside each other, or in folders of images and masks.

A mask is told by a word of its name or its folder (mask, seg, label, gt, ...). It belongs to the volume of
the same folder whose name it begins with, to the only volume there, or to the volume of that name in the
folder of images. Files that end in `_0000`, `_0001`, ... are channels of one volume.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from segtune.data.base import DataIndex, Severity
from segtune.data.findings import file_finding
from segtune.data.folder import IMAGE_WORDS, MASK_PARTS, MASK_WORDS
from segtune.data.msd import channel_cases
from segtune.data.settings import DataSettings
from segtune.data.split import SPLIT_WORDS
from segtune.data.volumes.build import volume_index
from segtune.data.volumes.labels import Labels
from segtune.data.volumes.nifti import is_volume, stem
from segtune.data.volumes.scan import Case
from segtune.errors import DataError

_PIECES = re.compile(r"[_\-. ]+")
_MASK_ENDINGS = ("seg", "mask", "label", "labels")


class NiftiPairs:
    """The format of plain NIfTI volumes with masks."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        if not root.is_dir():
            return None
        images, masks = _files(root)
        if not images or not masks:
            return None
        return f"{len(images)} NIfTI volumes and {len(masks)} masks by name"

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Pairs volumes with masks by name.

        Raises:
            DataError: no volume has a mask.
        """
        images, masks = _files(root)
        cases, lone = _pair(root, images, masks)
        if not cases:
            raise DataError(
                f"{root}: {len(images)} volumes and {len(masks)} masks, but no two that belong together",
                hint="call the mask of scan.nii.gz scan_mask.nii.gz, or put both into images/ and masks/",
            )
        return volume_index(
            root,
            format="nifti",
            cases=cases,
            labels=Labels(),
            settings=settings,
            evidence=[f"{len(cases)} pairs of volume and mask by name"],
            findings=file_finding(
                Severity.WARNING,
                "unmatched-file",
                "volumes without a mask are left out",
                root,
                lone,
                "add the masks, or remove the volumes",
            ),
        )

    def cases(self, root: Path) -> list[Case]:
        """Volumes to predict; masks among them are passed over."""
        images, masks = _files(root)
        cases = _image_cases(root, images)
        return [replace(case, label=_mask_of(root, case, images, masks)) for case in cases]


def _files(root: Path) -> tuple[list[Path], list[Path]]:
    images: list[Path] = []
    masks: list[Path] = []
    for path in sorted(root.rglob("*.nii*")):
        if is_volume(path) and path.is_file():
            (masks if _is_mask(path.relative_to(root)) else images).append(path)
    return images, masks


def _is_mask(path: Path) -> bool:
    for folder in reversed(path.parts[:-1]):
        word = _PIECES.sub("", folder.lower())
        if word in MASK_WORDS:
            return True
        if word in IMAGE_WORDS:
            return False
    pieces = _PIECES.split(stem(path).lower())
    return any(piece in MASK_PARTS or piece.endswith(_MASK_ENDINGS) for piece in pieces)


def _image_cases(root: Path, images: Sequence[Path]) -> list[Case]:
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in images:
        folders[path.parent].append(path)
    cases = []
    for folder, paths in folders.items():
        parts = folder.relative_to(root).parts
        splits = [SPLIT_WORDS[part.lower()] for part in parts if part.lower() in SPLIT_WORDS]
        words = (*SPLIT_WORDS, *IMAGE_WORDS)
        own = [part for part in parts if part.lower() not in words]
        for case in channel_cases(paths, {}):
            name = "/".join([*own, case.name])
            cases.append(Case(name=name, scans=case.scans, split=splits[-1] if splits else None))
    return cases


def _pair(root: Path, images: Sequence[Path], masks: Sequence[Path]) -> tuple[list[Case], list[Path]]:
    paired, lone = [], []
    for case in _image_cases(root, images):
        mask = _mask_of(root, case, images, masks)
        if mask is None:
            lone.append(case.first.path)
        else:
            paired.append(replace(case, label=mask))
    return paired, lone


def _mask_of(root: Path, case: Case, images: Sequence[Path], masks: Sequence[Path]) -> Path | None:
    own = case.name.rpartition("/")[2]
    folder = case.first.path.parent
    beside = [mask for mask in masks if mask.parent == folder]
    named = [mask for mask in beside if _begins(stem(mask), own)]
    if named:
        # "a" and "a_b" may both be volumes: a mask belongs to the longest name that it begins with.
        others = [stem(path) for path in images if path.parent == folder and len(stem(path)) > len(own)]
        named = [mask for mask in named if not any(_begins(stem(mask), other) for other in others)]
        return named[0] if len(named) == 1 else None
    if beside:
        alone = sum(path.parent == folder for path in images) == len(case.scans)
        return beside[0] if len(beside) == 1 and alone else None
    # images/a.nii.gz with masks/a.nii.gz, in folders whose other parts agree
    place = _neutral(root, folder)
    apart = [mask for mask in masks if _neutral(root, mask.parent) == place]
    exact = [mask for mask in apart if stem(mask) == own] or [m for m in apart if _begins(stem(m), own)]
    return exact[0] if len(exact) == 1 else None


def _begins(name: str, start: str) -> bool:
    return name.startswith(start) and name[len(start) : len(start) + 1] in ("", "_", "-", ".", " ")


def _neutral(root: Path, folder: Path) -> tuple[str, ...]:
    words = MASK_WORDS | IMAGE_WORDS
    parts = folder.relative_to(root).parts
    return tuple(part for part in parts if _PIECES.sub("", part.lower()) not in words)
