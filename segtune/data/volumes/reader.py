"""From unpacked volumes to slice images and back: normalised, cropped, stacked as channels.

What a slice image holds, for every scan alone: intensities of the body, clipped to its percentiles, less
their mean over their standard deviation (z-score), of which -z_limit..z_limit is mapped to 0..1. What lies
around the body is 0, whatever the file has there. With `normalise=percentile` the percentiles themselves
become 0 and 1, with `normalise=window` the two intensities named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtune.data.base import Image, Mask, Origin, Sample
from segtune.data.volumes.nifti import encode_like, read_header
from segtune.data.volumes.places import Places
from segtune.data.volumes.scan import AXES, Case, Scan, Unpacker, from_slices
from segtune.data.volumes.settings import VolumeRecipe
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX

FLATTEST = 1e-6
"""Standard deviations are at least this, in units of the intensities."""


@dataclass(frozen=True, kw_only=True)
class VolumeReader:
    """Reads the slices of a data set of volumes, and whole cases where they are scored or written."""

    recipe: VolumeRecipe
    """With the crop in numbers, or None."""
    cases: Mapping[str, Case]

    def origin(self, sample: Sample) -> Origin | None:
        """All files of the case, and how they are read."""
        case = self.cases[sample.case]
        files = [*(scan.path for scan in case.scans.values()), case.label, case.body]
        components = {name: scan.component for name, scan in case.scans.items()}
        rest = f"{self._recipe} {components} {sample.slice}"
        return Origin(tuple(dict.fromkeys(path for path in files if path is not None)), rest)

    @cached_property
    def _recipe(self) -> str:
        return self.recipe.model_dump_json(exclude={"cache", "cache_gib"})

    @cached_property
    def unpacker(self) -> Unpacker:
        """What opens the files."""
        return Unpacker.of(self.recipe)

    def image(self, sample: Sample) -> Image:
        """[h, w, C] float32 in [0, 1]: modalities, and of each the slice with its neighbours.

        Raises:
            DataError: a file cannot be read.
        """
        assert sample.slice is not None, f"{sample.name} is no slice"
        case = self.cases[sample.slice.case]
        names = self.recipe.modality_names or tuple(case.scans)
        if sample.slice.modality is not None:
            names = (sample.slice.modality,)
        reach = range(-self.recipe.neighbours, self.recipe.neighbours + 1)
        depth = self.depth(case.name)
        channels = [
            # Beyond the ends the last slice stands for its neighbour.
            self._plane(case, case.scans[name], min(max(sample.slice.position + step, 0), depth - 1))
            for name in names
            for step in reach
        ]
        if len(channels) == 1:
            channels *= 3
        return np.stack(channels, axis=2)

    def mask(self, sample: Sample) -> Mask:
        """[h, w] class map of the same part of the slice; ignored beyond the volume's rim.

        Raises:
            DataError: the file cannot be read, or holds values that mean no class.
        """
        assert sample.slice is not None and sample.mask is not None, f"{sample.name} has no mask"
        stored = self.unpacker.label(sample.mask)[sample.slice.position]
        return self._cut(sample.slice.case, self._classes(stored, sample.mask), IGNORE_INDEX)

    def truth(self, name: str) -> NDArray[np.uint8]:
        """Classes [D, H, W] of a whole case, nothing cut off.

        Raises:
            DataError: as `mask`.
        """
        label = self.cases[name].label
        assert label is not None, f"{name} has no mask"
        return self._classes(np.asarray(self.unpacker.label(label)), label)

    def depth(self, name: str) -> int:
        """Number of slices of a case."""
        return self.shape(name)[0]

    def shape(self, name: str) -> tuple[int, int, int]:
        """Slices, rows, columns of a case."""
        depth, height, width = self._facts(name)["shape"]
        return depth, height, width

    def spacing(self, name: str) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns of a case."""
        across = read_header(self.cases[name].first.path).spacing
        first, second, third = (across[axis] for axis in AXES[self.recipe.axis])
        return first, second, third

    def places(self, name: str) -> Places:
        """Where voxels of a case's first file lie in its slices."""
        return Places.of(read_header(self.cases[name].first.path), self.recipe.axis)

    def offset(self, name: str) -> tuple[int, int]:
        """Row and column of a whole slice at which images begin; negative where they reach beyond it."""
        if self.recipe.crop is None:
            return 0, 0
        assert self.recipe.crop != "brain", "the crop is settled before a slice is read"
        inside, own = self._window(name, self.recipe.crop)
        return inside[0].start - own[0].start, inside[1].start - own[1].start

    def put_back(self, name: str, part: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A predicted class map [h, w] of the part that images show, as a whole slice [H, W]; 0 around."""
        _, height, width = self.shape(name)
        whole = np.zeros((height, width), np.uint8)
        inside, own = self._window(name, part.shape)
        whole[inside] = part[own]
        return whole

    def encode(self, name: str, classes: NDArray[np.uint8]) -> bytes:
        """The classes [D, H, W] of a case as a .nii.gz file in the space and orientation of its own files.

        Values and type are those of the masks that the model was trained on.
        """
        values = np.array(self.recipe.label_values)[classes].astype(self.recipe.label_type)
        return encode_like(from_slices(values, self.recipe.axis), self.cases[name].first.path)

    def _facts(self, name: str) -> dict[str, Any]:
        case = self.cases[name]
        return self.unpacker.scan_facts(case.first, case.body)

    def _plane(self, case: Case, scan: Scan, position: int) -> NDArray[np.float32]:
        facts = self.unpacker.scan_facts(scan, case.body)
        voxels = np.asarray(self.unpacker.scan(scan, case.body)[position], np.float32)
        if self.recipe.normalise == "window":
            assert self.recipe.window is not None
            low, high = self.recipe.window
        else:
            low, high = facts["clip"]
        values = voxels.clip(low, high)
        if self.recipe.normalise == "z-score":
            reach = self.recipe.z_limit * max(facts["std"], FLATTEST)
            low, high = facts["mean"] - reach, facts["mean"] + reach
        scaled = ((values - low) / max(high - low, FLATTEST)).clip(0, 1)
        if case.body is not None:
            scaled = np.where(self.unpacker.body(case.body)[position], scaled, 0)
        elif facts["background"] is not None and self.recipe.normalise != "window":
            scaled = np.where(voxels == np.float32(facts["background"]), 0, scaled)
        return self._cut(case.name, scaled.astype(np.float32), 0)

    def _cut(self, name: str, plane: NDArray[Any], fill: int) -> NDArray[Any]:
        if self.recipe.crop is None:
            return plane
        assert self.recipe.crop != "brain", "the crop is settled before a slice is read"
        part = np.full(self.recipe.crop, fill, plane.dtype)
        inside, own = self._window(name, part.shape)
        part[own] = plane[inside]
        return part

    def _window(self, name: str, size: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where a part of this size lies in the case's slices, and which of its pixels those are."""
        facts = self._facts(name)
        inside, own = [], []
        for length, wanted, (first, end) in zip(
            facts["shape"][1:], size, (facts["box"][:2], facts["box"][2:]), strict=True
        ):
            # On the middle of the body, but never beyond a rim without need.
            start = (first + end - wanted) // 2
            start = min(max(start, 0), length - wanted) if wanted <= length else (length - wanted) // 2
            inside.append(slice(max(start, 0), min(start + wanted, length)))
            own.append(slice(max(-start, 0), max(-start, 0) + inside[-1].stop - inside[-1].start))
        return (inside[0], inside[1]), (own[0], own[1])

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        table = np.full(65536, -1, np.int16)
        for value, label in self.recipe.classes_of.items():
            table[value] = label
        return table

    def _classes(self, stored: NDArray[np.uint16], path: Path) -> NDArray[np.uint8]:
        classes = self._table[stored]
        if (classes < 0).any():
            strangers = sorted({int(value) for value in np.unique(stored[classes < 0])})
            raise DataError(
                f"{path}: the mask holds the values {strangers[:4]}, which mean no class",
                hint="name every class, or map the values with data.values",
            )
        return classes.astype(np.uint8)
