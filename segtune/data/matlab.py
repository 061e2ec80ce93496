"""Reads variables out of MATLAB files (.mat, up to version 7.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segtune.errors import DataError

MAX_BYTES = 500_000_000


def read_mat(path: Path, *names: str) -> dict[str, Any]:
    """The named variables of a file, those that it has; structs are nested arrays.

    Raises:
        DataError: the file is missing, damaged, or of another version.
    """
    from scipy.io import loadmat

    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES:,} bytes", hint="is this a file of labels?")
        found: Mapping[str, Any] = loadmat(str(path), variable_names=names, appendmat=False)
    except DataError:
        raise
    except Exception as error:  # the reader raises anything on foreign bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path}: not readable as a MATLAB file: {reason}",
            hint="copy it again, or save it with -v7 (version 7.3 is another format)",
        ) from None
    return {name: found[name] for name in names if name in found}


def struct_field(value: Any, name: str) -> Any:
    """The field of a struct of one element, or None where there is none."""
    if not isinstance(value, np.ndarray) or value.size != 1:
        return None
    if value.dtype.names is None or name not in value.dtype.names:
        return None
    return value[name].ravel()[0]
