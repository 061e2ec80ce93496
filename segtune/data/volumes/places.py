"""Where voxels of a file lie in the slices that are cut from it."""

from __future__ import annotations

from dataclasses import dataclass

from segtune.data.volumes.nifti import Header
from segtune.data.volumes.scan import AXES

_CANONICAL = ("RL", "AP", "SI")
"""Letters of the canonical axes, forwards and backwards."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """From indices along a file's axes to slices, rows and columns."""

    axes: tuple[int, int, int]
    """The file's axes that slices, rows and columns run along."""
    backwards: tuple[bool, bool, bool]
    """Whether they run against the file's axis."""
    shape: tuple[int, int, int]
    """Slices, rows, columns."""

    @classmethod
    def of(cls, header: Header, axis: str) -> Places:
        """Of a file's slices in a plane: "axial", "coronal" or "sagittal"."""
        letters = header.orientation
        axes, backwards = [], []
        for place, canonical in enumerate(AXES[axis]):
            own = next(i for i, letter in enumerate(letters) if letter in _CANONICAL[canonical])
            axes.append(own)
            # Rows and columns run against the canonical axes (`to_slices`).
            backwards.append((letters[own] == _CANONICAL[canonical][1]) != (place > 0))
        return cls(
            axes=(axes[0], axes[1], axes[2]),
            backwards=(backwards[0], backwards[1], backwards[2]),
            shape=(header.shape[axes[0]], header.shape[axes[1]], header.shape[axes[2]]),
        )

    def position(self, index: int) -> int:
        """The slice that an index along the file's axis across the slices stands for."""
        return self.shape[0] - 1 - index if self.backwards[0] else index

    def point(self, first: float, second: float) -> tuple[float, float]:
        """Column and row of indices along the file's other two axes, in the file's order."""
        row, column = (first, second) if self.axes[1] < self.axes[2] else (second, first)
        if self.backwards[1]:
            row = self.shape[1] - 1 - row
        if self.backwards[2]:
            column = self.shape[2] - 1 - column
        return column, row

    @property
    def sides(self) -> tuple[int, int]:
        """Voxels along the file's two axes within a slice, in the file's order."""
        rows, columns = self.shape[1:]
        return (rows, columns) if self.axes[1] < self.axes[2] else (columns, rows)
