"""Brain tumours in the BraTS layout: one folder for each patient with a NIfTI file for each modality.

Modalities are found in file names, whatever else they hold: t1n or T1, t1c or T1ce or T1Gd, t2w or T2, t2f or
FLAIR; the mask by seg or OT (ground truth of 2013). A brainmask, where there is one, says what the brain is.
Folders called train, validation or test above the patients are splits.

Mask values: 1 necrosis, 2 oedema, 3 tumour without enhancement (2013 only), 4 enhancing tumour. Since 2023,
known by the names t1n, t2w and t2f, 3 is enhancing tumour and 4 (2024) the resection cavity.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from segtune.data.base import DataIndex, Severity
from segtune.data.findings import file_finding
from segtune.data.settings import DataSettings
from segtune.data.split import SPLIT_WORDS
from segtune.data.volumes.build import volume_index
from segtune.data.volumes.labels import Labels
from segtune.data.volumes.nifti import is_volume, stem
from segtune.data.volumes.scan import Case, Scan
from segtune.errors import DataError

MODALITIES = {
    "t1n": "t1", "t1": "t1",
    "t1c": "t1c", "t1ce": "t1c", "t1gd": "t1c",
    "t2w": "t2", "t2": "t2",
    "t2f": "flair", "flair": "flair",
}  # fmt: skip
"""Piece of a file's name -> the modality; in the order in which they become channels."""
MODERN = frozenset({"t1n", "t2w", "t2f"})
MASKS = frozenset({"seg", "segmentation", "ot", "otmulticlass", "mask", "label"})
_PIECES = re.compile(r"[_\-. ]+")

NAMES = {0: "background", 1: "necrosis", 2: "oedema", 3: "non-enhancing tumour", 4: "enhancing tumour"}
REGIONS = {"whole tumour": (1, 2, 3, 4), "tumour core": (1, 3, 4), "enhancing tumour": (4,)}
MODERN_NAMES = {0: "background", 1: "necrosis", 2: "oedema", 3: "enhancing tumour", 4: "resection cavity"}
MODERN_REGIONS = {"whole tumour": (1, 2, 3), "tumour core": (1, 3), "enhancing tumour": (3,)}


class BraTS:
    """The format of patients' folders."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        if not root.is_dir():
            return None
        patients = [case for case, _ in _patients(root) if len(case.scans) > 1 and case.label is not None]
        if not patients:
            return None
        return f"{len(patients)} patients' folders with modalities and a mask, e.g. {patients[0].name}"

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Lists the patients.

        Raises:
            DataError: no patient has a mask.
        """
        found = list(_patients(root))
        cases = [case for case, _ in found if case.label is not None]
        if not cases:
            raise DataError(
                f"{root}: no patient's folder holds modalities and a mask",
                hint="files are told by t1, t1c, t2, flair (t1n, t1ce, t2w, t2f) and seg in their names",
            )
        modern = any(pieces & MODERN for _, pieces in found)
        names = MODERN_NAMES if modern else NAMES
        bodies = sum(case.body is not None for case in cases)
        return volume_index(
            root,
            format="brats",
            cases=cases,
            labels=Labels(known=names, regions=MODERN_REGIONS if modern else REGIONS),
            settings=settings,
            evidence=[
                f"{len(cases)} patients' folders; {bodies} with a brain mask",
                f"mask values as {'since 2023' if modern else 'before 2023'}: "
                f"enhancing tumour is {3 if modern else 4}",
            ],
            findings=file_finding(
                Severity.WARNING,
                "unmatched-file",
                "patients without a mask are left out",
                root,
                [case.first.path for case, _ in found if case.label is None],
                "add the masks, or remove the patients",
            ),
        )

    def cases(self, root: Path) -> list[Case]:
        """Patients to predict, with or without a mask."""
        return [case for case, _ in _patients(root)]


def modality_of(path: Path) -> str | None:
    """The modality that a file's name says, or None."""
    words = [piece for piece in _PIECES.split(stem(path).lower()) if piece in MODALITIES]
    return MODALITIES[words[-1]] if words else None


def _patients(root: Path) -> Iterator[tuple[Case, set[str]]]:
    """Every folder that holds modalities, with the pieces that name them."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    # A walk over the names that end like volumes: other files, however many, are not looked at.
    for path in sorted(root.rglob("*.nii*")):
        if is_volume(path) and path.is_file():
            folders[path.parent].append(path)
    for folder, paths in folders.items():
        scans: dict[str, Scan] = {}
        seen: set[str] = set()
        label = body = None
        for path in paths:
            words = _PIECES.split(stem(path).lower())
            if "brainmask" in words:
                body = path
            elif MASKS & set(words):
                label = path
            elif (modality := modality_of(path)) is not None:
                scans[modality] = Scan(path=path)
                seen |= {word for word in words if word in MODALITIES}
        if not scans:
            continue
        parts = folder.relative_to(root).parts
        splits = [SPLIT_WORDS[part.lower()] for part in parts if part.lower() in SPLIT_WORDS]
        own = [part for part in parts if part.lower() not in SPLIT_WORDS]
        ordered = {name: scans[name] for name in dict.fromkeys(MODALITIES.values()) if name in scans}
        yield (
            Case(
                name="/".join(own) or folder.name,
                scans=ordered,
                label=label,
                body=body,
                split=splits[-1] if splits else None,
            ),
            seen,
        )
