"""The part of docs/results.md about recipes, from benchmarks/recipe_*.json; used by generate_results.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pages import table

Row = tuple[str, ...]


def recipe(data: dict[str, Any]) -> list[str]:
    """What came out of a recipe's commands."""
    lines = [f"### {data['recipe']}", "", f"{data['title']}. {origin(data)}"]
    for line, rows in describe(data):
        lines += ["", line] if line else []
        lines += ["", *table(rows[0], rows[1:])]
    return lines


def describe(data: dict[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    """The tables of one result file.

    Yields:
        A line in front of a table, and the table with its header as the first row.
    """
    if data["runs"]:
        yield "", list(_runs(data["runs"]))
    for name, comparison in data["comparisons"].items():
        seeds, images = comparison["seeds"], f"{comparison['num_images']} {comparison['split']} images"
        yield (
            f"Comparison `{name}`: {comparison['score']} of {images}, {seeds} seed{'s' if seeds > 1 else ''};"
            " the interval is over images.",
            list(_rows(comparison)),
        )
    if data["evaluations"]:
        yield "Evaluated again:", list(_evaluations(data["evaluations"]))
    if "attention" in data:
        attention = data["attention"]
        rows = zip(attention["base"], attention["tuned"], strict=True)
        yield (
            f"Mean attention distance in pixels, {attention['images']} images:",
            [
                ("block", "base", "tuned"),
                *((str(block), f"{base:.1f}", f"{tuned:.1f}") for block, (base, tuned) in enumerate(rows)),
            ],
        )


def origin(data: dict[str, Any]) -> str:
    """Where the numbers come from, in one line."""
    known = [entry["processor_seconds"] for entry in data["commands"]]
    parts = [f"torch {data['versions']['torch']}", *(f"commit {commit[:8]}" for commit in data["commits"])]
    if any(known):
        minutes = f"{sum(seconds or 0 for seconds in known) / 60:.0f} processor minutes"
        parts.insert(0, minutes + (" for what was not there before" if None in known else ""))
    return "; ".join(parts) + "."


def _score(run: dict[str, Any]) -> str:
    return "foreground_iou" if len(run["class_names"]) == 2 else "miou"


def _runs(runs: dict[str, Any]) -> Iterator[Row]:
    score = _score(next(iter(runs.values())))
    yield ("run", "method", "images", score, "pixel accuracy", "mean loss", "trained", "minutes")
    for name, run in runs.items():
        split = "test" if run["test"] else "val"
        scores = run[split]["scores"]
        yield (
            name,
            run["method"],
            f"{run[split]['num_images']} {split}",
            f"{scores[_score(run)]:.4f}",
            f"{scores['pixel_accuracy']:.4f}",
            f"{scores['cross_entropy']:.4f}",
            f"{run['parameters_trainable']:,}",
            f"{run['train_seconds'] / 60:.1f}",
        )


def _rows(comparison: dict[str, Any]) -> Iterator[Row]:
    yield ("row", comparison["score"], "95 % interval", "standing", "trained", "minutes")
    for row in comparison["rows"]:
        mean = "-" if row["mean"] is None else f"{row['mean']:.4f}"
        yield (
            row["label"],
            mean if row["std"] is None else f"{mean} ± {row['std']:.4f}",
            "-" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}",
            row["standing"] or "; ".join(row["failures"]),
            "-" if row["parameters_trainable"] is None else f"{row['parameters_trainable']:,}",
            "-" if row["minutes"] is None else f"{row['minutes']:.1f}",
        )


def _evaluations(evaluations: list[dict[str, Any]]) -> Iterator[Row]:
    yield ("command", "images", "miou", "pixel accuracy")
    for entry in evaluations:
        scores = entry["scores"]
        yield (
            f"`{entry['command']}`",
            str(entry["num_images"]),
            f"{scores['miou']:.4f}",
            f"{scores['pixel_accuracy']:.4f}",
        )
