"""NIfTI files: read in canonical orientation, written back in the file's own.

Canonical means that the axes run to the patient's right, front and head (RAS), reached by flips
and exchanges of axes alone: no voxel is resampled, so that every orientation goes there and back exactly.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segtune.errors import DataError, MissingExtraError

SUFFIXES = (".nii.gz", ".nii")
"""Endings of the files that count as volumes."""
MAX_VOXELS = 2_000_000_000
"""Files whose header claims more voxels than this are refused before anything is decoded."""


Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about itself before its voxels are decoded."""

    shape: tuple[int, ...]
    """In the file's own order: three axes, or four where it holds several components."""
    affine: NDArray[np.float64]
    """[4, 4] from the file's voxel indices to millimetres."""
    orientation: str
    """Where the three axes run to, e.g. "LPS"."""
    spacing: tuple[float, float, float]
    """Millimetres between voxels along the canonical axes."""
    dtype: str
    """numpy's name of the stored type."""

    def describe(self) -> str:
        """Shape and affine as text, for messages."""
        rows = "; ".join(" ".join(f"{value:.4g}" for value in row) for row in self.affine[:3])
        return f"{'x'.join(map(str, self.shape))} voxels with the affine [{rows}]"


def nibabel() -> Any:
    """The package that reads NIfTI.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import nibabel
    except ImportError:
        raise MissingExtraError("nibabel", extra="medical", purpose="reading NIfTI volumes") from None
    return nibabel


def is_volume(path: Path) -> bool:
    """Whether a file's name ends like that of a volume."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """The name without .nii or .nii.gz."""
    return path.name[: -len(next(end for end in SUFFIXES if path.name.lower().endswith(end)))]


def read_header(path: Path) -> Header:
    """Reads a file's header; no voxel is decoded.

    Raises:
        DataError: the file is missing, empty, damaged, too large or no NIfTI volume.
        MissingExtraError: nibabel is not installed.
    """
    return _guarded(path, lambda image: _header(path, image))


def read_canonical(path: Path, component: int = 0) -> NDArray[Any]:
    """The voxels [X, Y, Z] in canonical orientation, in the stored type unless the file scales them.

    Args:
        path: of the file.
        component: index along a fourth axis, where there is one.

    Raises:
        DataError: as `read_header`, or the content ends before the last voxel.
        MissingExtraError: nibabel is not installed.
    """

    def use(image: Any) -> NDArray[Any]:
        _header(path, image)
        proxy = image.dataobj
        array = np.asanyarray(proxy[..., component] if len(image.shape) == 4 else proxy)
        if array.dtype == np.float64:  # what scaled integers come as
            array = array.astype(np.float32)
        orientations = nibabel().orientations
        turned: NDArray[Any] = orientations.apply_orientation(
            array, orientations.io_orientation(image.affine)
        )
        return turned

    return _guarded(path, use)


def encode_like(classes: NDArray[Any], source: Path) -> bytes:
    """A canonical volume as a .nii.gz file in the space and orientation of another file.

    Args:
        classes: [X, Y, Z] in canonical orientation, in the type to be stored.
        source: the file that gives orientation, affine and units.

    Returns:
        The file's content, the same bytes for the same input.
    """
    nib = nibabel()
    image = nib.load(source)
    back = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(np.eye(4)), nib.orientations.io_orientation(image.affine)
    )
    array = np.ascontiguousarray(nib.orientations.apply_orientation(classes, back))
    assert array.shape == image.shape[:3], f"{array.shape} for {image.shape}"
    header = image.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0
    header["descrip"] = b"segtune"
    # No affine is given: the header's own codes and numbers stay as they are, bit for bit.
    return gzip.compress(type(image)(array, None, header).to_bytes(), compresslevel=6, mtime=0)


def _header(path: Path, image: Any) -> Header:
    nib = nibabel()
    shape = tuple(int(size) for size in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(
            f"{path}: {'x'.join(map(str, shape))} is no volume", hint="files with three axes are read"
        )
    if math.prod(shape) > MAX_VOXELS:
        raise DataError(
            f"{path}: the header claims {'x'.join(map(str, shape))} voxels, more than {MAX_VOXELS:,}",
            hint="cut the volume into parts",
        )
    stored = np.dtype(image.get_data_dtype())
    if stored.kind not in "iuf":
        raise DataError(
            f"{path}: its voxels are {'colours' if stored.names else stored.name}, not single numbers",
            hint="save one number for each voxel",
        )
    affine = np.asarray(image.affine, np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (spacing > 0).all():
        raise DataError(
            f"{path}: the affine places no voxel in space: {affine[:3].tolist()}",
            hint="write the file again with a valid affine",
        )
    order = nib.orientations.io_orientation(affine)[:, 0]
    if np.isnan(order).any():
        raise DataError(
            f"{path}: the affine places no voxel in space: {affine[:3].tolist()}",
            hint="write the file again with a valid affine",
        )
    place = np.argsort(order)
    across = spacing[place]
    return Header(
        shape=shape,
        affine=affine,
        orientation="".join(nib.aff2axcodes(affine)),
        spacing=(float(across[0]), float(across[1]), float(across[2])),
        dtype=stored.name,
    )


def _guarded(path: Path, use: Callable[[Any], Result]) -> Result:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", hint="check the path and its rights") from None
    if size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)", hint="copy it again, or remove it")
    nib = nibabel()
    try:
        return use(nib.load(path))
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on foreign bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path}: the volume cannot be read: {reason}",
            hint="the file may be truncated or have a wrong ending: copy or save it again, or remove it",
        ) from None
