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
from segtune.comparison.statistics import (
    FEWEST_UNITS,
    HAVE_INTERVALS,
    Draws,
    Interval,
    Measured,
    difference,
    interval,
    score_of,
)
from segtune.engine.case_values import CaseValues
from segtune.engine.folder import RunFolder
from segtune.engine.image_counts import ImageCounts, read_counts
from segtune.metrics import VOLUME_METRICS


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
    """95 % interval over images, or volumes, of the mean over seeds."""
    behind: Interval | None = None
    """How much better the best row is than this one; None for the best."""
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
    """Images that were scored, or volumes where they are scored as such."""
    unit: str
    num_units: int
    """What the bootstrap draws, "image", "volume" or "group", and how many; 0 where the score has none."""
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
    of_volumes: bool = False
    """Whether scores are of whole volumes."""
    lower_is_better: bool = False

    @property
    def things(self) -> str:
        """What is scored: "images" or "volumes"."""
        return "volumes" if self.of_volumes else "images"

    @property
    def has_intervals(self) -> bool:
        """Whether rows can be told apart."""
        return self.num_units >= FEWEST_UNITS

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
    counts: dict[str, list[Measured]] = {}
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
        left = [(cell, folder, loaded[cell.name]) for cell, folder in done]
        counts[row.label] = _counts_of_seeds(own, left, split, plan.score)
        result.scores = _scores(plan, counts[row.label], [loaded[cell.name] for cell, _ in done], split)
        if result.scores:
            result.mean = stats.mean(result.scores)
            result.std = stats.stdev(result.scores) if len(result.scores) > 1 else None
        elif done:
            result.failures.append(f"its result has no {plan.score}")
    draws = _set_against(plan, results, counts)
    ranked = sorted(
        results.values(), key=lambda r: -math.inf if r.mean is None else plan.sign * r.mean, reverse=True
    )
    first = next(iter(loaded.values()), None)
    some = next((found[0] for found in counts.values() if found), None)
    of_volumes = first is not None and bool((first["result"][split] or {}).get("volumes"))
    one = "volume" if of_volumes else "image"
    return Comparison(
        rows=ranked,
        score=plan.score,
        split=split,
        num_images=0 if some is None else len(some.names),
        unit=one if plan.settings.resample == "image" else plan.settings.resample,
        num_units=0 if draws is None else draws.num_units,
        seeds=plan.settings.seeds,
        folds=plan.settings.folds,
        num_groups=0 if some is None else len(set(some.groups) - {None}),
        cells=[_cell_entry(cell, loaded, failures, plan.score, split) for cell, _ in cells],
        trials=[dict(trial) for trial in trials],
        versions={} if first is None else first["result"]["versions"],
        peak_of="GPU" if first is not None and first["result"]["device"] == "cuda" else "process",
        data="" if first is None else first["result"]["data"],
        of_volumes=of_volumes,
        lower_is_better=plan.sign < 0,
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
    planned: Sequence[tuple[Cell, CellFolder]],
    done: Sequence[tuple[Cell, CellFolder, Mapping[str, Any]]],
    split: str,
    score: str,
) -> list[Measured]:
    """What each seed all of whose folds are done has left, the folds put together."""
    wanted: dict[int, int] = defaultdict(int)
    for cell, _ in planned:
        wanted[cell.seed] += 1
    images: dict[int, list[ImageCounts]] = defaultdict(list)
    volumes: dict[int, list[CaseValues]] = defaultdict(list)
    for cell, folder, run in done:
        counts = read_counts(RunFolder(folder.run).images(split))
        evaluation = run["result"][split]
        if score not in VOLUME_METRICS:
            images[cell.seed].append(counts)
        elif evaluation.get("volumes"):
            groups = dict(zip(counts.names, counts.groups, strict=True))
            volumes[cell.seed].append(CaseValues.from_result(evaluation, score, groups))
    if score in VOLUME_METRICS:
        return [
            CaseValues.joined(parts) for seed, parts in sorted(volumes.items()) if len(parts) == wanted[seed]
        ]
    return [ImageCounts.joined(parts) for seed, parts in sorted(images.items()) if len(parts) == wanted[seed]]


def _scores(
    plan: Plan, counts: Sequence[Measured], runs: Sequence[Mapping[str, Any]], split: str
) -> list[float]:
    if plan.score in HAVE_INTERVALS:
        found = [score_of(of_seed, plan.score) for of_seed in counts]
        return [value for value in found if not math.isnan(value)]
    # a score that counts cannot give: the runs' own, which folds do not change but for its spread
    given = [run["result"][split]["scores"].get(plan.score) for run in runs]
    return [value for value in given if value is not None]


def _set_against(
    plan: Plan, results: Mapping[str, RowResult], counts: Mapping[str, Sequence[Measured]]
) -> Draws | None:
    """Intervals of all rows, and their distance from the best one."""
    scored = [label for label, result in results.items() if result.scores and counts[label]]
    if plan.score not in HAVE_INTERVALS or not scored:
        return None
    first = counts[scored[0]][0]
    groups = first.groups if plan.settings.resample == "group" else None
    draws = Draws(first.names, groups, plan.settings.resamples)
    best = max(scored, key=lambda label: plan.sign * (results[label].mean or 0.0))
    results[best].standing = "best"
    if draws.num_units < FEWEST_UNITS:
        return draws
    drawn = {
        label: np.stack([draws.scores(of_seed.select(first.names), plan.score) for of_seed in counts[label]])
        for label in scored
    }
    for label in scored:
        result = results[label]
        assert result.mean is not None
        own = interval(result.mean, drawn[label].mean(0))
        result.low, result.high = own.low, own.high
        if label == best:
            continue
        best_mean = results[best].mean
        assert best_mean is not None
        value = plan.sign * (best_mean - result.mean)
        result.behind = difference(value, plan.sign * drawn[best], plan.sign * drawn[label], draws)
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
