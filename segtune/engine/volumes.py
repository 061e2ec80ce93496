"""Predicted slices put together: modalities combined, slices stacked, whole volumes scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segtune.data.base import DataIndex, Sample, Slice
from segtune.data.volumes.reader import VolumeReader
from segtune.data.volumes.settings import VolumeRecipe
from segtune.metrics.tally import Tally
from segtune.metrics.volume_scores import VolumeTally

Volume = NDArray[np.uint8]
"""[D, H, W] class of each voxel."""


def whole_cases(index: DataIndex, samples: Sequence[Sample]) -> list[Sample]:
    """The samples, and of volumes every slice of the cases that they are cut out of."""
    cases = {sample.case for sample in samples if sample.slice is not None}
    if not cases:
        return list(samples)
    return [sample for sample in index.samples if sample.case in cases]


class VolumeGathering:
    """Makes volumes of the probabilities of slices, which come case by case and in order.

    Args:
        reader: of the data.
        samples: every slice of every case, in the order in which they come.
    """

    def __init__(self, reader: VolumeReader, samples: Sequence[Sample]) -> None:
        self.reader = reader
        self.slices = {sample.name: sample.slice for sample in samples}
        self.held: list[Tensor] = []
        self.volume: Volume | None = None

    def add(self, names: Sequence[str], probabilities: Tensor) -> Iterator[tuple[str, Volume]]:
        """Takes the next slices.

        Args:
            names: of the samples.
            probabilities: [B, K, h, w] of each, on the CPU.

        Yields:
            Name and classes of each case that is complete now, in the space of its slices.
        """
        for name, own in zip(names, probabilities, strict=True):
            place = self.slices[name]
            assert place is not None, f"{name} is no slice"
            if self.volume is None:
                self.volume = np.zeros(self.reader.shape(place.case), np.uint8)
            self.held.append(own)
            if len(self.held) < self._num_images(place):
                continue
            classes = combine(torch.stack(self.held), self.reader.recipe.combination)
            self.held = []
            self.volume[place.position] = self.reader.put_back(place.case, classes.numpy().astype(np.uint8))
            if place.position == len(self.volume) - 1:
                done, self.volume = self.volume, None
                yield place.case, done

    def _num_images(self, place: Slice) -> int:
        return 1 if place.modality is None else len(self.reader.cases[place.case].scans)


def combine(probabilities: Tensor, combination: str) -> Tensor:
    """One class map of the predictions for every modality.

    Args:
        probabilities: [M, K, h, w].
        combination: "mean" of the probabilities, or "majority" of the classes; where two classes have as
            many votes, the one with the higher mean probability wins.

    Returns:
        int64 [h, w].
    """
    mean = probabilities.mean(dim=0)
    if combination == "mean" or len(probabilities) == 1:
        return mean.max(dim=0).indices  # faster than argmax on a CPU
    votes = torch.nn.functional.one_hot(probabilities.argmax(dim=1), probabilities.shape[1]).sum(dim=0)
    # Votes are whole numbers and probabilities at most 1: half of them never outweighs a vote.
    return (votes.permute(2, 0, 1) + mean / 2).argmax(dim=0)


class VolumeScoring:
    """Puts predicted slices together and scores each volume, nothing cut off.

    Args:
        index: the data.
        samples: every slice of every case, in the order in which they come.
    """

    def __init__(self, index: DataIndex, samples: Sequence[Sample]) -> None:
        assert isinstance(index.reader, VolumeReader)
        self.reader = index.reader
        recipe = self.reader.recipe
        self.gathering = VolumeGathering(self.reader, samples)
        self.tally = VolumeTally(recipe.regions, recipe.tolerance, index.classes.ignore_index)

    def add(self, names: Sequence[str], probabilities: Tensor, tally: Tally) -> None:
        """Takes the next slices; cases that are complete are scored, and counted in a tally of voxels."""
        for case, prediction in self.gathering.add(names, probabilities):
            mask = self.reader.truth(case)
            tally.update(prediction, mask, case)
            self.tally.update(prediction, mask, case, self.reader.spacing(case))


def recipe_of(index: DataIndex) -> VolumeRecipe | None:
    """How a data set of volumes is fed to a model; None where it has images."""
    return index.reader.recipe if isinstance(index.reader, VolumeReader) else None
