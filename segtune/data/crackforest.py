"""CrackForest: photos of roads, with cracks marked in MATLAB files.

    image/001.jpg   groundTruth/001.mat

The MATLAB files may also lie beside the images. Their field `Segmentation` holds 1 for the background and 2
for cracks; other fields are not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segtune.data.assemble import assemble
from segtune.data.base import Classes, DataIndex, Sample
from segtune.data.files import MAX_PIXELS, MaskFile
from segtune.data.known import KnownCoding
from segtune.data.matching import by_key, list_files, match
from segtune.data.matlab import has_variable, read_mat, struct_field
from segtune.data.palette import default_palette
from segtune.data.settings import DataSettings
from segtune.errors import DataError

IMAGES, MASKS = "image", "groundTruth"
VARIABLE, FIELD = "groundTruth", "Segmentation"
CODING = KnownCoding(
    title="masks of CrackForest",
    classes=Classes(names=("background", "crack"), palette=default_palette(2)),
    values={1: 0, 2: 1},
)


class CrackForest:
    """The format of CrackForest."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        images, masks = _places(root)
        first = next((path for path in masks.values() if has_variable(path, VARIABLE)), None)
        if not images.keys() & masks.keys() or first is None:
            return None
        where = first.parent.relative_to(root).as_posix()
        place = "beside the images" if where == "." else f"in {where}/"
        return f"{len(masks)} MATLAB files {place} with the variable {VARIABLE}"

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Pairs images with MATLAB files by name; none of them is opened.

        Raises:
            DataError: no image has one.
        """
        images, masks = _places(root)
        keys, findings = match(root, images, masks)
        if not keys:
            raise DataError(
                f"{root}: {len(images)} images and {len(masks)} MATLAB files, but no two of the same name",
                hint=f"names are {IMAGES}/001.jpg and {MASKS}/001.mat",
            )
        return assemble(
            root,
            format="crackforest",
            samples=[Sample(name=key, image=images[key], mask=masks[key], split=None) for key in keys],
            settings=settings,
            evidence=[f"{len(keys)} images with a MATLAB file"],
            findings=findings,
            known=CODING,
            read=read_segmentation,
        )


def read_segmentation(path: Path) -> MaskFile:
    """What a MATLAB file says of the pixels.

    Raises:
        DataError: the file is damaged or holds something else.
    """
    value = struct_field(read_mat(path, VARIABLE).get(VARIABLE), FIELD)
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: there is no map of pixels {VARIABLE}.{FIELD}", hint="is this a file of CrackForest?"
        )
    if (
        value.size > MAX_PIXELS
        or (value < 0).any()
        or (value > 65535).any()
        or (value != np.rint(value)).any()
    ):
        raise DataError(f"{path}: {VARIABLE}.{FIELD} holds what are no classes", hint="copy the file again")
    return MaskFile(values=value.astype(np.uint16), palette=None, lossy=False)


def _places(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and MATLAB files by name, in the published folders or in one."""
    is_published = (root / IMAGES).is_dir() and (root / MASKS).is_dir()
    images, masks = (root / IMAGES, root / MASKS) if is_published else (root, root)
    return (
        by_key((path.stem, path) for path in list_files(images)),
        by_key((path.stem, path) for path in list_files(masks, {".mat"})),
    )
