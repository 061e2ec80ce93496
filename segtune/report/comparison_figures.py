"""Figures of a comparison, each a function from its rows to a matplotlib figure, or None without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segtune.report.style import line_style, new_figure, point_style

Figure = Any
"""matplotlib's Figure; the library is an extra."""


def trade_off(
    rows: Sequence[dict[str, Any]], score: str, cost: str, title: str, unit: float = 1.0, *, log: bool = False
) -> Figure | None:
    """Score against a cost, a point for each row of a comparison, with its interval.

    Args:
        rows: of compare.json.
        score: what the score is called.
        cost: key of the cost.
        title: of its axis, with the unit.
        unit: what it is divided by.
        log: logarithmic axis, where the costs span a decade.
    """
    rows = [row for row in rows if row["mean"] is not None and row[cost]]
    if len(rows) < 2:
        return None
    figure, axis = new_figure(7.2, 3.8)
    for number, row in enumerate(rows):
        x = row[cost] / unit
        if row["low"] is not None:
            axis.plot([x, x], [row["low"], row["high"]], color="#999999", linewidth=1, zorder=1)
        axis.plot([x], [row["mean"]], label=row["label"], markersize=7, **point_style(number))
    costs = [row[cost] for row in rows]
    if log and max(costs) >= 10 * min(costs):  # within a decade a logarithmic axis may have no labelled tick
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter("")
    axis.set_xlabel(title)
    axis.set_ylabel(f"{score}; line: 95 % interval" if any(r["low"] is not None for r in rows) else score)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def score_by_rank(rows: Sequence[dict[str, Any]], score: str) -> Figure | None:
    """Score against rank, a line for each method that was tried at several."""
    series: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        words = row["label"].split()
        rank = next((int(word[5:]) for word in words if word.startswith("rank=")), None)
        if rank is not None and row["mean"] is not None:
            name = " ".join(word for word in words if not word.startswith("rank="))
            series.setdefault(name, []).append((rank, row["mean"], row["std"] or 0.0))
    series = {name: sorted(points) for name, points in series.items() if len(points) > 1}
    if not series:
        return None
    figure, axis = new_figure()
    for number, (name, points) in enumerate(series.items()):
        ranks, means, spreads = zip(*points, strict=True)
        axis.errorbar(ranks, means, spreads, label=name, capsize=3, marker="o", **line_style(number))
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({point[0] for points in series.values() for point in points}))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("rank")
    axis.set_ylabel(f"{score} ± standard deviation")
    axis.legend()
    return figure


def comparison_bars(rows: Sequence[dict[str, Any]], score: str, unit: str) -> Figure | None:
    """Score of each row with its interval, the best on top; what equals it is filled.

    Args:
        rows: of compare.json.
        score: what the score is called.
        unit: what intervals are over: "image", "volume" or "group".
    """
    rows = [row for row in rows if row["mean"] is not None]
    if not rows:
        return None
    figure, axis = new_figure(6.8, 0.9 + 0.3 * len(rows))
    for place, row in enumerate(rows):
        is_best = row["standing"] in ("best", "not distinguishable")
        if row["low"] is not None:
            axis.plot([row["low"], row["high"]], [place, place], color="black", linewidth=1.2)
        style = {"color": "black", "markeredgecolor": "black", "markersize": 6, "marker": "o"}
        axis.plot([row["mean"]], [place], **style, fillstyle="full" if is_best else "none")
        for seed in row["scores"]:
            axis.plot([seed], [place], marker="|", color="#0072B2", markersize=9)
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axis.invert_yaxis()
    has_intervals = any(row["low"] is not None for row in rows)
    shown = (
        f"line: 95 % interval over {unit}s, filled: not below the best" if has_intervals else "filled: best"
    )
    axis.set_xlabel(f"{score}; ticks: seeds, {shown}")
    return figure
