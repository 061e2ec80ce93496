"""A recommendation in words, from the numbers of a comparison alone, with its uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from segtune.comparison.results import Comparison, RowResult
from segtune.comparison.statistics import FEWEST_UNITS
from segtune.comparison.table import score_text, size_text

FEW_SEEDS = 3
BASELINES = frozenset({"base", "zero-shot"})


def advise(comparison: Comparison) -> list[str]:
    """Sentences, the most important first; empty where no row has a score."""
    scored = [row for row in comparison.rows if row.mean is not None]
    if not scored:
        return ["No run has finished: there is nothing to recommend."]
    best = scored[0]
    equal = [row for row in scored if row.standing == "not distinguishable"]
    sentences = [f"Best {comparison.score}: {best.label}, {score_text(best)}."]
    if equal:
        sentences.append(
            f"Not distinguishable from it on these {comparison.things}: "
            + "; ".join(f"{row.label} ({score_text(row)}{_difference(row, comparison)})" for row in equal)
            + "."
        )
    elif len(scored) > 1 and scored[1].standing == "behind":
        second = scored[1]
        sentences.append(
            f"Every other row is behind; the next is {second.label}{_difference(second, comparison)}."
        )
    sentences += _cheapest([best, *equal])
    sentences += _against_baseline(best, scored, comparison)
    sentences += _caveats(comparison)
    return sentences


def _difference(row: RowResult, comparison: Comparison) -> str:
    if row.behind is None:
        return ""
    way = "higher" if comparison.lower_is_better else "lower"
    return f", {row.behind.value:.4f} {way}, 95 % interval {row.behind.low:+.4f} to {row.behind.high:+.4f}"


def _cheapest(rows: Sequence[RowResult]) -> list[str]:
    """Which of the equally good rows costs least, by each cost in which they differ."""
    rows = [row for row in rows if row.method not in BASELINES]
    if len(rows) < 2:
        return []
    costs: list[tuple[str, Callable[[RowResult], float | None], Callable[[RowResult], str]]] = [
        (
            "trains the fewest parameters",
            lambda r: r.parameters_trainable,
            lambda r: f"{r.parameters_trainable:,}",
        ),
        ("leaves the smallest file", lambda r: r.adapter_bytes, lambda r: size_text(r.adapter_bytes or 0)),
        ("trains fastest", lambda r: r.minutes, lambda r: f"{r.minutes:.2f} minutes"),
        ("needs the least memory", lambda r: r.peak_bytes, lambda r: size_text(r.peak_bytes or 0)),
    ]
    winners: dict[str, list[str]] = {}
    for words, cost, text in costs:
        known = [row for row in rows if cost(row) is not None]
        if len({text(row) for row in known}) > 1:
            least = min(known, key=lambda row: cost(row) or 0.0)
            winners.setdefault(least.label, []).append(f"{words} ({text(least)})")
    if not winners:
        return []
    return [
        "Of these, " + "; ".join(f"{label} {' and '.join(what)}" for label, what in winners.items()) + "."
    ]


def _against_baseline(best: RowResult, scored: Sequence[RowResult], comparison: Comparison) -> list[str]:
    baseline = next((row for row in scored if row.method in BASELINES), None)
    if baseline is None or baseline is best or best.mean is None or baseline.mean is None:
        return []
    gain = best.mean - baseline.mean
    what = f"takes off {-gain:.4f}" if comparison.lower_is_better else f"adds {gain:.4f}"
    return [f"Before tuning ({baseline.label}) the score was {baseline.mean:.4f}: tuning {what}."]


def _caveats(comparison: Comparison) -> list[str]:
    said = []
    if comparison.seeds < FEW_SEEDS:
        said.append(
            f"With {comparison.seeds} seed{'s' if comparison.seeds > 1 else ''} the spread between runs is"
            f" hardly known: repeat with --seeds {FEW_SEEDS} or more before relying on small differences."
        )
    if not comparison.num_units:
        said.append(f"There is no interval for {comparison.score}: differences cannot be judged.")
    elif not comparison.has_intervals:
        said.append(
            f"With {comparison.num_units} {comparison.unit}{'s' if comparison.num_units > 1 else ''} no"
            f" difference can be shown to be more than luck, which takes {FEWEST_UNITS} at least: the order"
            " of the rows is that of their means, no more."
        )
    elif comparison.num_units < 20:
        said.append(f"{comparison.num_units} {comparison.unit}s are few: the intervals themselves are rough.")
    failed = [row.label for row in comparison.rows if row.mean is None]
    if failed:
        said.append(f"Without a result: {', '.join(failed)}.")
    return said
