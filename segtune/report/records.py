"""What a run's folder tells, read once for all figures and tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtune.engine.folder import RunFolder
from segtune.engine.image_counts import ImageCounts, read_counts
from segtune.errors import UsageError


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One finished run."""

    label: str
    folder: RunFolder
    result: dict[str, Any]
    steps: list[dict[str, Any]]
    """The lines of metrics.jsonl about training steps."""
    validations: list[dict[str, Any]]
    """Those about validations."""
    resources: dict[str, list[float]]
    """Column -> values, where they were recorded."""

    @property
    def split(self) -> str | None:
        """The split whose scores are shown: test where there is one."""
        return next((name for name in ("test", "val") if self.result.get(name)), None)

    @property
    def evaluation(self) -> dict[str, Any]:
        """Scores of that split; empty where nothing was scored."""
        return {} if self.split is None else dict(self.result[self.split])

    @property
    def ranks(self) -> tuple[int, ...]:
        """Rank of each of its methods that has one."""
        parts = self.folder.read_config().method_parts.values()
        return tuple(rank for part in parts if (rank := getattr(part, "rank", None)) is not None)

    @property
    def counts(self) -> ImageCounts | None:
        """Counts of the images of that split."""
        path = None if self.split is None else self.folder.images(self.split)
        return read_counts(path) if path is not None and path.is_file() else None


def read_run(path: Path, label: str) -> RunRecord:
    """Reads a finished run.

    Raises:
        UsageError: not a run's folder, or the run has not finished.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise UsageError(f"{path} is not the folder of a run", hint="name folders that `segtune fit` wrote")
    if not folder.result.is_file():
        raise UsageError(
            f"the run in {path} has not finished: result.json is missing",
            hint="segtune fit --resume --out RUN",
        )
    lines: list[dict[str, Any]] = []
    if folder.metrics.is_file():
        with folder.metrics.open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.strip()]
    return RunRecord(
        label=label,
        folder=folder,
        result=json.loads(folder.result.read_text(encoding="utf-8")),
        steps=[line for line in lines if line["kind"] == "train"],
        validations=[line for line in lines if line["kind"] == "val"],
        resources=_read_resources(folder.resources),
    )


def _read_resources(path: Path) -> dict[str, list[float]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return {}
    known = [name for name in rows[0] if all(row[name] for row in rows)]
    columns = {name: [float(row[name]) for row in rows] for name in known}
    # a run that was continued begins to count its seconds anew
    offset, last, seconds = 0.0, 0.0, []
    for value in columns.get("seconds", []):
        offset += last if value < last else 0.0
        last = value
        seconds.append(offset + value)
    return {**columns, "seconds": seconds}


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Reads runs; each is called like its folder, with as much of its path as tells it from the others."""
    resolved = [path.resolve() for path in paths]
    for depth in range(1, 1 + max(len(path.parts) for path in resolved)):
        labels = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(labels)) == len(set(resolved)):
            break
    return [read_run(path, label) for path, label in zip(paths, labels, strict=True)]


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value with up to `window - 1` before it; nothing from the future."""
    averages, total = [], 0.0
    for place, value in enumerate(values):
        total += value - (values[place - window] if place >= window else 0.0)
        averages.append(total / min(place + 1, window))
    return averages
