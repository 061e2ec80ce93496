"""Scores of single volumes, from the result of a run: what statistics over volumes are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CaseValues:
    """One metric of N volumes and G regions."""

    names: tuple[str, ...]
    groups: tuple[str | None, ...]
    values: Floats
    """[N, G]; not a number where a region is in neither mask nor prediction."""

    @classmethod
    def from_result(
        cls, evaluation: Mapping[str, Any], metric: str, groups: Mapping[str, str | None]
    ) -> CaseValues:
        """Those of one split.

        Args:
            evaluation: of a split, as in result.json, of volumes.
            metric: name of a metric of volumes.
            groups: name of a case -> its group.
        """
        volumes: Mapping[str, Mapping[str, Mapping[str, float | None]]] = evaluation["volumes"]
        rows = [
            [np.nan if value is None else value for value in scores[metric].values()]
            for scores in volumes.values()
        ]
        return cls(tuple(volumes), tuple(groups.get(name) for name in volumes), np.array(rows, np.float64))

    @classmethod
    def joined(cls, parts: Sequence[CaseValues]) -> CaseValues:
        """The volumes of several parts as one set."""
        return cls(
            tuple(name for part in parts for name in part.names),
            tuple(group for part in parts for group in part.groups),
            np.concatenate([part.values for part in parts]),
        )

    def select(self, names: Sequence[str]) -> CaseValues:
        """These volumes, in this order."""
        chosen = [self.names.index(name) for name in names]
        return CaseValues(tuple(names), tuple(self.groups[i] for i in chosen), self.values[chosen])

    def means(self, weights: Floats) -> Floats:
        """The score of sets of volumes: the mean over cases that count for each region, then over regions.

        Args:
            weights: [R, N] how often each set holds each volume.

        Returns:
            [R]; not a number where nothing counts.
        """
        known = ~np.isnan(self.values)
        total = weights @ np.where(known, self.values, 0.0)
        with np.errstate(invalid="ignore"):
            regions = total / (weights @ known.astype(np.float64))  # [R, G]
            counted = ~np.isnan(regions)
            return np.asarray(np.where(counted, regions, 0.0).sum(1) / counted.sum(1))
