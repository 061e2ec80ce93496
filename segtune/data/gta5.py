"""GTA5 (Playing for Data): images/00001.png, labels/00001.png, and the published split.mat.

Masks are palette files whose index is the label number of Cityscapes, or the same in true colour; both may
stand side by side. Labels are read as the 19 classes of Cityscapes, or as all 35. `segtune data convert gta5`
makes JPEG images and index masks of them, which are smaller and read faster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from segtune.data.assemble import assemble
from segtune.data.base import DataIndex, Finding, Sample, Severity
from segtune.data.files import image_size, read_mask_file
from segtune.data.findings import file_finding
from segtune.data.masks import file_colours, pack_colours, unpack_colour
from segtune.data.matching import by_key, list_files, list_names, match
from segtune.data.matlab import read_mat
from segtune.data.palette import CITYSCAPES
from segtune.data.settings import DataSettings
from segtune.data.street import LABELS, PLATE, street_coding
from segtune.errors import DataError
from segtune.settings import Settings

IMAGES, MASKS, SPLIT_FILE = "images", "labels", "split.mat"
SIZE = (1052, 1914)
"""Height and width of almost all frames, in pixels."""
GTA5_LABELS = (*LABELS, PLATE)
VARIABLES = {"trainIds": "train", "valIds": "val", "testIds": "test"}
_NAME = re.compile(r"\d{5}")


class Gta5Settings(Settings):
    """Which classes and which split."""

    classes: Literal[19, 35] = Field(19, description="19, as Cityscapes; 35: every label")
    split: Literal["auto", "fractions"] = Field(
        "auto", description="auto: that of split.mat where it is there; fractions: data.val_fraction, ..."
    )


class Gta5:
    """The format of GTA5."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        images, masks = list_names(root / IMAGES), list_names(root / MASKS)
        stems = (name.rpartition(".")[0] for name in (*images, *masks))
        if not images or not masks or not all(map(_NAME.fullmatch, stems)):
            return None
        numbers = f"{IMAGES}/ and {MASKS}/ hold numbers of five digits"
        if (root / SPLIT_FILE).is_file():
            return f"{numbers}, and there is {SPLIT_FILE}"
        try:
            if image_size(root / IMAGES / images[0]) == SIZE:
                return f"{numbers}, of {SIZE[1]} x {SIZE[0]} pixels"
            if _street_colours(root / MASKS / masks[0]):
                return f"{numbers}, in the colours of Cityscapes"
        except DataError:
            return None
        return None

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Pairs frames with their masks; no mask is opened.

        Raises:
            DataError: no frame has a mask, or split.mat is damaged.
        """
        options = Gta5Settings.model_validate(settings.options)
        images = by_key((path.stem, path) for path in list_files(root / IMAGES))
        masks = by_key((path.stem, path) for path in list_files(root / MASKS))
        keys, findings = match(root, images, masks)
        if not keys:
            raise DataError(
                f"{root}: {len(images)} files in {IMAGES}/ and {len(masks)} in {MASKS}/, "
                "but no two of the same name",
                hint="names are 00001.png in both folders",
            )
        evidence = [f"{len(keys)} frames"]
        splits: dict[str, str] = {}
        if options.split == "auto" and (root / SPLIT_FILE).is_file():
            splits = _read_split(root / SPLIT_FILE)
            unlisted = [key for key in keys if key not in splits]
            keys = [key for key in keys if key in splits]
            evidence.append(f"the split of {SPLIT_FILE}")
            findings += _unlisted(root, [images[key] for key in unlisted])
            if not keys:
                raise DataError(
                    f"{root / SPLIT_FILE} lists none of the {len(images)} frames",
                    hint="data.options.split=fractions divides them by share",
                )
        index = assemble(
            root,
            format="gta5",
            samples=[Sample(name=k, image=images[k], mask=masks[k], split=splits.get(k)) for k in keys],
            settings=settings,
            evidence=[", ".join(evidence)],
            findings=findings,
            known=street_coding(
                "masks of GTA5 (label numbers, or their colours)",
                "all" if options.classes == 35 else 19,
                labels=GTA5_LABELS,
            ),
        )
        # A few published masks have another size than their image; the check leaves them out.
        return replace(index, expected=("size-mismatch",))


def _street_colours(path: Path) -> bool:
    """Whether a mask has the colours of Cityscapes, and more than a few."""
    file = read_mask_file(path)
    if file.values.ndim == 2 and file.palette is None:
        return False
    codes = np.unique(pack_colours(file_colours(file)))
    return len(codes) < 64 and CITYSCAPES.matches({unpack_colour(int(code)) for code in codes})


def _read_split(path: Path) -> dict[str, str]:
    """Frame -> split."""
    found = read_mat(path, *VARIABLES)
    if len(found) < len(VARIABLES):
        raise DataError(
            f"{path}: {', '.join(found) or 'none'} of the variables {', '.join(VARIABLES)}",
            hint="data.options.split=fractions leaves the file alone",
        )
    splits: dict[str, str] = {}
    for variable, split in VARIABLES.items():
        for number in _numbers(path, variable, found[variable]):
            if splits.setdefault(f"{number:05d}", split) != split:
                raise DataError(f"{path}: frame {number} stands in two splits", hint="copy the file again")
    return splits


def _numbers(path: Path, variable: str, value: Any) -> Sequence[int]:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or (value != np.rint(value)).any():
        raise DataError(f"{path}: {variable} is no list of frames", hint="copy the file again")
    numbers: list[int] = value.ravel().astype(np.int64).tolist()
    return numbers


def _unlisted(root: Path, images: Sequence[Path]) -> list[Finding]:
    return file_finding(
        Severity.WARNING,
        "sample-without-split",
        f"frames stand in no list of {SPLIT_FILE} and are left out",
        root,
        images,
        "data.options.split=fractions uses all",
    )
