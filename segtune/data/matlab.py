"""Reads variables out of MATLAB files (.mat); those of version 7.3 are HDF5 and need the extra `matlab`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segtune.data.files import MAX_PIXELS
from segtune.errors import DataError, MissingExtraError

MAX_BYTES = 500_000_000
SIGNATURE = b"MATLAB 7.3 MAT-file"
"""What files of version 7.3 begin with."""


def read_mat(path: Path, *names: str) -> dict[str, Any]:
    """The named variables of a file, those that it has; structs are nested arrays.

    Raises:
        DataError: the file is missing or damaged.
        MissingExtraError: it is of version 7.3, and h5py is not installed.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES:,} bytes", hint="is this a file of labels?")
        found = _read_hdf5(path, names) if is_hdf5(path) else _read_old(path, names)
    except (DataError, MissingExtraError):
        raise
    except Exception as error:  # the readers raise anything on foreign bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path}: not readable as a MATLAB file: {reason}", hint="copy it again, or save it with -v7"
        ) from None
    return {name: found[name] for name in names if name in found}


def has_variable(path: Path, name: str) -> bool:
    """Whether a file has a variable; False of what is no MATLAB file.

    Without h5py any file of version 7.3 may have it.
    """
    try:
        if is_hdf5(path):
            try:
                with _open(path) as file:
                    return name in file
            except MissingExtraError:
                return True
        from scipy.io import whosmat

        return any(found == name for found, _, _ in whosmat(str(path), appendmat=False))
    except Exception:  # the readers raise anything on foreign bytes
        return False


def struct_field(value: Any, name: str) -> Any:
    """The field of a struct of one element, or None where there is none."""
    if not isinstance(value, np.ndarray) or value.size != 1:
        return None
    if value.dtype.names is None or name not in value.dtype.names:
        return None
    return value[name].ravel()[0]


def is_hdf5(path: Path) -> bool:
    """Whether a file is of version 7.3."""
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def _read_old(path: Path, names: tuple[str, ...]) -> Mapping[str, Any]:
    from scipy.io import loadmat

    found: Mapping[str, Any] = loadmat(str(path), variable_names=names, appendmat=False)
    return found


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingExtraError(
            "h5py", extra="matlab", purpose="reading MATLAB files of version 7.3"
        ) from None
    return h5py.File(path, "r")


def _read_hdf5(path: Path, names: tuple[str, ...]) -> Mapping[str, Any]:
    """Arrays of numbers, and structs of one element with such arrays, in the shape that scipy gives them."""
    found: dict[str, Any] = {}
    with _open(path) as file:
        for name in names:
            entry = _entry(path, file, name)
            if entry is None:
                continue
            if hasattr(entry, "keys"):
                fields = {field: _array(path, _entry(path, entry, field)) for field in entry}
                known = {field: array for field, array in fields.items() if array is not None}
                struct = np.empty((1, 1), [(field, object) for field in known])
                for field, array in known.items():
                    struct[0, 0][field] = array
                found[name] = struct
            else:
                found[name] = _array(path, entry)
    return found


def _entry(path: Path, group: Any, name: str) -> Any:
    """What lies in the file itself under a name, or None.

    Raises:
        DataError: the name leads to another file.
    """
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if type(link).__name__ != "HardLink":
        raise DataError(f"{path}: {name} leads to another place", hint="copy the file again")
    return group[name]


def _array(path: Path, entry: Any) -> Any:
    """An array of numbers, or None of anything else; MATLAB's columns are HDF5's rows."""
    if not hasattr(entry, "shape") or entry.dtype.kind not in "iufb":
        return None
    if entry.external or entry.is_virtual:
        raise DataError(f"{path}: its arrays lie in other files", hint="copy the file again")
    if entry.size > MAX_PIXELS:
        raise DataError(f"{path}: the header claims {entry.size:,} numbers, more than {MAX_PIXELS:,}")
    return np.asarray(entry[()]).T
