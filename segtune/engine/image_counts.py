"""Counts of each scored image on disk: what every later statistic over images is computed from.

One line an image: its name, its group (sequence, patient; empty where there is none), and for each
class i the pixels that are right (`right_i`), that are of the class in the mask (`true_i`), and that
are of the class in the prediction (`predicted_i`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segtune.engine.files import write_text
from segtune.errors import UsageError
from segtune.metrics.tally import Counts, Tally

COUNTED = ("right", "true", "predicted")


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """N images, K classes."""

    names: tuple[str, ...]
    groups: tuple[str | None, ...]
    right: Counts
    """[N, K] pixels that are of the class in mask and prediction."""
    true: Counts
    """[N, K] pixels of the class in the mask."""
    predicted: Counts
    """[N, K] pixels of the class in the prediction."""

    @classmethod
    def from_tally(cls, tally: Tally, groups: Mapping[str, str | None]) -> ImageCounts:
        """The counts of an evaluation.

        Args:
            tally: of the evaluation.
            groups: name of a sample -> its group.
        """
        right, true = tally.intersections, tally.areas
        names = tuple(tally.names)
        return cls(names, tuple(groups[name] for name in names), right, true, tally.unions + right - true)

    @classmethod
    def joined(cls, parts: Sequence[ImageCounts]) -> ImageCounts:
        """The images of several parts as one set."""
        return cls(
            tuple(name for part in parts for name in part.names),
            tuple(group for part in parts for group in part.groups),
            *(np.concatenate([getattr(part, what) for part in parts]) for what in COUNTED),
        )

    def select(self, names: Sequence[str]) -> ImageCounts:
        """The counts of these images, in this order."""
        place = {name: index for index, name in enumerate(self.names)}
        chosen = [place[name] for name in names]
        groups = tuple(self.groups[index] for index in chosen)
        return ImageCounts(
            tuple(names), groups, self.right[chosen], self.true[chosen], self.predicted[chosen]
        )


def write_counts(path: Path, counts: ImageCounts) -> None:
    """Writes the counts as CSV, whole or not at all."""
    num_classes = counts.right.shape[1]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "group", *(f"{what}_{i}" for what in COUNTED for i in range(num_classes))])
    table = np.concatenate([counts.right, counts.true, counts.predicted], axis=1).tolist()
    for name, group, row in zip(counts.names, counts.groups, table, strict=True):
        writer.writerow([name, group or "", *row])
    write_text(path, text.getvalue())


def read_counts(path: Path) -> ImageCounts:
    """Reads the counts back.

    Raises:
        UsageError: the file is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        table = np.array([[int(cell) for cell in row[2:]] for row in rows], dtype=np.int64)
        right, true, predicted = np.split(table.reshape(len(rows), len(header) - 2), 3, axis=1)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} does not hold the counts of images: {error}",
            hint="`segtune fit` writes it at the end of a run",
        ) from None
    return ImageCounts(
        tuple(row[0] for row in rows), tuple(row[1] or None for row in rows), right, true, predicted
    )
