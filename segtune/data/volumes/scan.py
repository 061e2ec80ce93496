"""One file of a patient, unpacked: slices in a fixed orientation, and facts about its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtune.data.array_cache import ArrayCache, Facts, identity, make_key
from segtune.data.volumes.nifti import read_canonical
from segtune.data.volumes.settings import VolumeSettings
from segtune.errors import DataError

AXES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
"""Plane -> the canonical axes that slices, rows and columns run along, the last two backwards.

So the head or the front of the body is above, and the patient's right, or front, is on the left."""
BACKGROUND_SHARE = 0.1
"""The lowest value is taken for the surroundings of the body where so many voxels have it."""
MAX_LABEL = 65535


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Where one modality of a patient lies."""

    path: Path
    component: int = 0
    """Index along the file's fourth axis, where there is one."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One patient's files."""

    name: str
    scans: dict[str, Scan]
    """Modality -> its file."""
    label: Path | None = None
    body: Path | None = None
    """A mask of the brain, where the data has one."""
    split: str | None = None

    @property
    def first(self) -> Scan:
        """The scan whose space the case has."""
        return next(iter(self.scans.values()))


def to_slices(canonical: NDArray[Any], axis: str) -> NDArray[Any]:
    """A canonical volume [X, Y, Z] as slices [D, H, W]; a view."""
    return canonical.transpose(AXES[axis])[:, ::-1, ::-1]


def from_slices(slices: NDArray[Any], axis: str) -> NDArray[Any]:
    """Slices [D, H, W] as a canonical volume [X, Y, Z]; a view."""
    return slices[:, ::-1, ::-1].transpose(np.argsort(AXES[axis]))


@dataclass(frozen=True, kw_only=True)
class Unpacker:
    """Unpacks the files of a data set into the cache.

    Every array is [D, H, W] along the slices' axis; facts are what normalising, cropping and checking need.
    """

    cache: ArrayCache
    axis: str
    percentiles: tuple[float, float]

    @classmethod
    def of(cls, settings: VolumeSettings) -> Unpacker:
        """The unpacker that the settings ask for."""
        cache = ArrayCache(folder=settings.folder, limit=settings.cache_gib * 2**30)
        return cls(cache=cache, axis=settings.axis, percentiles=settings.percentiles)

    def scan(self, scan: Scan, body: Path | None) -> NDArray[Any]:
        """The voxels of a scan, in the stored type, mapped into memory."""
        return self.cache.array(self._scan_key(scan, body), lambda: self._make_scan(scan, body))

    def scan_facts(self, scan: Scan, body: Path | None) -> Facts:
        """What a scan holds.

        Returns:
            shape [D, H, W]; finite; low, high of all voxels; background, the value around the body, or
            None where all voxels count; inside, share of the voxels in the body; mean, std of the body
            after clipping to its percentiles clip; box [top, bottom, left, right] of the body's pixels.

        Raises:
            DataError: the file cannot be read.
        """
        return self.cache.facts(self._scan_key(scan, body), lambda: self._make_scan(scan, body))

    def label(self, path: Path) -> NDArray[np.uint16]:
        """The values of a mask file, mapped into memory."""
        return self.cache.array(self._label_key(path), lambda: self._make_label(path))

    def label_facts(self, path: Path) -> Facts:
        """What a mask holds.

        Returns:
            shape [D, H, W]; values: value as text -> voxels in each slice.

        Raises:
            DataError: the file cannot be read, or holds fractions or negative numbers.
        """
        return self.cache.facts(self._label_key(path), lambda: self._make_label(path))

    def body(self, path: Path) -> NDArray[np.bool_]:
        """A mask of the body, mapped into memory."""
        key = make_key("body", identity(path), self.axis)
        return self.cache.array(key, lambda: (to_slices(read_canonical(path), self.axis) > 0.5, {}))

    def _scan_key(self, scan: Scan, body: Path | None) -> str:
        around = None if body is None else identity(body)
        return make_key(
            "scan", identity(scan.path), scan.component, around, self.axis, list(self.percentiles)
        )

    def _label_key(self, path: Path) -> str:
        return make_key("label", identity(path), self.axis)

    def _make_scan(self, scan: Scan, body: Path | None) -> tuple[NDArray[Any], Facts]:
        voxels = to_slices(read_canonical(scan.path, scan.component), self.axis)
        facts: Facts = {"shape": list(voxels.shape), "finite": bool(np.isfinite(voxels).all())}
        if not facts["finite"]:
            return voxels, facts
        low, high = float(voxels.min()), float(voxels.max())
        around = voxels == voxels.min()
        background = low if body is None and around.mean() >= BACKGROUND_SHARE and low < high else None
        if body is None:
            inside = ~around if background is not None else np.ones(voxels.shape, np.bool_)
        else:
            inside = np.asarray(self.body(body))
            if inside.shape != voxels.shape:
                raise DataError(
                    f"{body}: the brain mask has another space than {scan.path.name}", hint="remove the mask"
                )
            if not inside.any():
                raise DataError(f"{body}: the brain mask is empty", hint="remove the mask")
        chosen = voxels[inside].astype(np.float64)
        clip = np.percentile(chosen, self.percentiles)
        chosen = chosen.clip(*clip)
        rows, columns = (np.flatnonzero(inside.any(axis=axes)) for axes in ((0, 2), (0, 1)))
        facts |= {
            "low": low,
            "high": high,
            "background": background,
            "inside": float(inside.mean()),
            "clip": [float(value) for value in clip],
            "mean": float(chosen.mean()),
            "std": float(chosen.std()),
            "box": [int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1],
        }
        return voxels, facts

    def _make_label(self, path: Path) -> tuple[NDArray[Any], Facts]:
        stored = read_canonical(path)
        rounded = np.rint(stored.astype(np.float64))
        # Scaled integers come back a rounding error beside their whole number.
        if not np.isfinite(stored).all() or np.abs(stored - rounded).max() > 1e-3:
            raise DataError(
                f"{path}: the mask holds fractions", hint="save masks as whole numbers, one for each class"
            )
        if rounded.min() < 0 or rounded.max() > MAX_LABEL:
            raise DataError(
                f"{path}: the mask holds values outside of 0..{MAX_LABEL}",
                hint="save masks as whole numbers, one for each class",
            )
        labels = to_slices(rounded.astype(np.uint16), self.axis)
        values = {str(int(v)): (labels == v).sum(axis=(1, 2)).tolist() for v in np.unique(labels)}
        return labels, {"shape": list(labels.shape), "values": values}
