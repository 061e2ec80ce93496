"""From the folders of finished cells to one line for each row: quality with its uncertainty, and cost."""

from __future__ import annotations

import json
import math
import statistics as stats
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from segtune.comparison.cell import SPEED, CellFolder
from segtune.comparison.plan import Cell, Plan
from segtune.comparison.statistics import HAVE_INTERVALS, Draws, Interval, difference, interval, score_of
from segtune.engine.folder import RunFolder
from segtune.engine.image_counts import ImageCounts, read_counts


@dataclass(kw_only=True)
class RowResult:
    """One line of the table; what is unknown is None."""

    label: str
    model: str
    method: str
    scores: list[float] = field(default_factory=list)
    """Of each seed; the folds of a seed are scored as one set."""
    mean: float | None = None
    std: float | None = None
    """Over seeds, of a sample; None for a single one."""
    low: float | None = None
    high: float | None = None
    """95 % interval over images of the mean over seeds."""
    behind: Interval | None = None
    """How much the best row is above this one; None for the best."""
    standing: str = ""
    """"best", "not distinguishable", "behind" or "" where that is not known."""
    learning_rate: float | None = None
    parameters_total: int | None = None
    parameters_trainable: int | None = None
    adapter_bytes: int | None = None
    minutes: float | None = None
    """Of training and its validations, the mean over runs."""
    images_per_second: float | None = None
    """In training."""
    peak_bytes: int | None = None
    """The largest of all runs: on the GPU where there is one, of the process otherwise."""
    unmerged_ms: float | None = None
    merged_ms: float | None = None
    """Inference of one image; None where the method cannot be merged."""
    num_runs: int = 0
    failures: list[str] = field(default_factory=list)
    """Why runs failed, each reason once, with their number."""


@dataclass(kw_only=True)
class Comparison:
    """Everything that a comparison found out."""

    rows: list[RowResult]
    """The best first; rows without a score last."""
    score: str
    split: str
    num_images: int
    unit: str
    num_units: int
    """What the bootstrap draws, "image" or "group", and how many there are."""
    seeds: int
    folds: int | None
    num_groups: int
    cells: list[dict[str, Any]]
    """Each run: name, row, seed, fold, score, or why it failed."""
    trials: list[dict[str, Any]]
    """Each trial of a learning rate with its validation score."""
    versions: dict[str, Any]
    peak_of: str
    """What the memory is of: "GPU" or "process"."""
    data: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def collect(
    plan: Plan,
    cells: Sequence[tuple[Cell, CellFolder]],
    trials: Sequence[Mapping[str, Any]],
    failures: Mapping[str, str],
) -> Comparison:
    """Reads what the cells have left.

    Args:
        plan: of the comparison.
        cells: every run whose score counts, with its folder.
        trials: what the search of learning rates found.
        failures: name of a cell, or label of a row without any run -> reason.
    """
    loaded = {cell.name: _read(folder) for cell, folder in cells if folder.is_done}
    results = {row.label: RowResult(label=row.label, model=row.model, method=row.method) for row in plan.rows}
    counts: dict[str, list[ImageCounts]] = {}
    split = "test" if all(run["result"]["test"] for run in loaded.values()) else "val"
    for row in plan.rows:
        own = [(cell, folder) for cell, folder in cells if cell.row.label == row.label]
        done = [(cell, folder) for cell, folder in own if cell.name in loaded]
        result = results[row.label]
        _fill_costs(result, [loaded[cell.name] for cell, _ in done])
        reasons = [failures[cell.name] for cell, _ in own if cell.name in failures]
        reasons += [failures[row.label]] if row.label in failures else []
        result.failures = [
            f"{reasons.count(reason)} x {reason}" if reasons.count(reason) > 1 else reason
            for reason in dict.fromkeys(reasons)
        ]
        counts[row.label] = _counts_of_seeds(own, done, split)
        result.scores = _scores(plan, counts[row.label], [loaded[cell.name] for cell, _ in done], split)
        if result.scores:
            result.mean = stats.mean(result.scores)
            result.std = stats.stdev(result.scores) if len(result.scores) > 1 else None
    draws = _set_against(plan, results, counts)
    ranked = sorted(results.values(), key=lambda r: -math.inf if r.mean is None else r.mean, reverse=True)
    first = next(iter(loaded.values()), None)
    some = next((found[0] for found in counts.values() if found), None)
    return Comparison(
        rows=ranked,
        score=plan.score,
        split=split,
        num_images=0 if some is None else len(some.names),
        unit=plan.settings.resample,
        num_units=0 if draws is None else draws.num_units,
        seeds=plan.settings.seeds,
        folds=plan.settings.folds,
        num_groups=0 if some is None else len(set(some.groups) - {None}),
        cells=[_cell_entry(cell, loaded, failures, plan.score, split) for cell, _ in cells],
        trials=[dict(trial) for trial in trials],
        versions={} if first is None else first["result"]["versions"],
        peak_of="GPU" if first is not None and first["result"]["device"] == "cuda" else "process",
        data="" if first is None else first["result"]["data"],
    )


def _read(folder: CellFolder) -> dict[str, Any]:
    run = RunFolder(folder.run)
    return {
        "result": json.loads(run.result.read_text(encoding="utf-8")),
        "speed": json.loads((run.path / SPEED).read_text(encoding="utf-8")),
    }


def _fill_costs(row: RowResult, runs: Sequence[Mapping[str, Any]]) -> None:
    row.num_runs = len(runs)
    if not runs:
        return
    first = runs[0]["result"]
    for name in ("parameters_total", "parameters_trainable", "adapter_bytes", "learning_rate"):
        setattr(row, name, first.get(name))
    row.minutes = stats.mean(run["result"]["train_seconds"] for run in runs) / 60
    row.images_per_second = stats.mean(run["result"]["images_per_second"] for run in runs) or None
    row.peak_bytes = max(
        run["result"].get("peak_gpu_bytes") or run["result"].get("peak_process_bytes", 0) for run in runs
    )
    row.unmerged_ms = stats.median(run["speed"]["unmerged_ms"] for run in runs)
    merged = [run["speed"]["merged_ms"] for run in runs if run["speed"]["merged_ms"] is not None]
    row.merged_ms = stats.median(merged) if merged else None


def _counts_of_seeds(
    planned: Sequence[tuple[Cell, CellFolder]], done: Sequence[tuple[Cell, CellFolder]], split: str
) -> list[ImageCounts]:
    """The counts of each seed all of whose folds are done, the folds put together."""
    wanted: dict[int, int] = defaultdict(int)
    for cell, _ in planned:
        wanted[cell.seed] += 1
    found: dict[int, list[ImageCounts]] = defaultdict(list)
    for cell, folder in done:
        found[cell.seed].append(read_counts(RunFolder(folder.run).images(split)))
    return [_joined(parts) for seed, parts in sorted(found.items()) if len(parts) == wanted[seed]]


def _joined(parts: Sequence[ImageCounts]) -> ImageCounts:
    return ImageCounts(
        tuple(name for part in parts for name in part.names),
        tuple(group for part in parts for group in part.groups),
        *(np.concatenate([getattr(part, what) for part in parts]) for what in ("right", "true", "predicted")),
    )


def _scores(
    plan: Plan, counts: Sequence[ImageCounts], runs: Sequence[Mapping[str, Any]], split: str
) -> list[float]:
    if plan.score in HAVE_INTERVALS:
        return [score_of(of_seed, plan.score) for of_seed in counts]
    # a score that counts cannot give: the runs' own, which folds do not change but for its spread
    found = [run["result"][split]["scores"].get(plan.score) for run in runs]
    return [value for value in found if value is not None]


def _set_against(
    plan: Plan, results: Mapping[str, RowResult], counts: Mapping[str, Sequence[ImageCounts]]
) -> Draws | None:
    """Intervals of all rows, and their distance from the best one."""
    scored = [label for label, result in results.items() if result.scores and counts[label]]
    if plan.score not in HAVE_INTERVALS or not scored:
        return None
    first = counts[scored[0]][0]
    groups = first.groups if plan.settings.resample == "group" else None
    draws = Draws(first.names, groups, plan.settings.resamples)
    drawn = {
        label: np.stack([draws.scores(of_seed.select(first.names), plan.score) for of_seed in counts[label]])
        for label in scored
    }
    best = max(scored, key=lambda label: results[label].mean or 0.0)
    for label in scored:
        result = results[label]
        assert result.mean is not None
        own = interval(result.mean, drawn[label].mean(0))
        result.low, result.high = own.low, own.high
        if label == best:
            result.standing = "best"
            continue
        best_mean = results[best].mean
        assert best_mean is not None
        result.behind = difference(best_mean - result.mean, drawn[best], drawn[label], draws)
        result.standing = "behind" if result.behind.low > 0 else "not distinguishable"
    return draws


def _cell_entry(
    cell: Cell, loaded: Mapping[str, Mapping[str, Any]], failures: Mapping[str, str], score: str, split: str
) -> dict[str, Any]:
    run = loaded.get(cell.name)
    found = run["result"][split] if run is not None else None
    return {
        "name": cell.name,
        "row": cell.row.label,
        "seed": cell.seed,
        "fold": cell.fold,
        "score": found["scores"].get(score) if found else None,
        "learning_rate": run["result"]["learning_rate"] if run is not None else None,
        "failure": failures.get(cell.name),
    }
