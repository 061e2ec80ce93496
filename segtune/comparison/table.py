"""The table of a comparison as text: columns once, for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from segtune.comparison.results import Comparison, RowResult

MARKS = {"best": "**", "not distinguishable": "*", "behind": "", "": ""}
"""Written behind a score."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def header(comparison: Comparison) -> list[str]:
    """Titles of the columns, units included."""
    return [
        "method", comparison.score, "95 % interval", "trained", "of all", "file", "train min", "images/s",
        f"peak {comparison.peak_of}", "infer ms", "merged ms",
    ]  # fmt: skip


def cells(row: RowResult) -> list[str]:
    """One line of the table."""
    if row.mean is None:
        why = row.failures[0] if row.failures else "no finished run"
        return [row.label, f"failed: {why}", *[""] * 9]
    share = (row.parameters_trainable or 0) / row.parameters_total if row.parameters_total else 0.0
    return [
        row.label,
        score_text(row) + MARKS[row.standing],
        _known(row.low, lambda low: f"{low:.4f}-{row.high:.4f}"),
        _known(row.parameters_trainable, lambda count: f"{count:,}"),
        f"{share:.2%}",
        _known(row.adapter_bytes, size_text),
        _known(row.minutes, lambda minutes: f"{minutes:.2f}"),
        _known(row.images_per_second, lambda rate: f"{rate:.1f}"),
        _known(row.peak_bytes, size_text),
        _known(row.unmerged_ms, lambda time: f"{time:.1f}"),
        _known(row.merged_ms, lambda time: f"{time:.1f}"),
    ]


def score_text(row: RowResult) -> str:
    """Mean and standard deviation over seeds."""
    return f"{row.mean:.4f}" + ("" if row.std is None else f" ± {row.std:.4f}")


def size_text(num_bytes: int) -> str:
    """Bytes in the unit that suits them, powers of 1024."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _known(value: Any, text: Callable[[Any], str]) -> str:
    return "-" if value is None else text(value)


def legend(comparison: Comparison) -> list[str]:
    """What the numbers are, line by line."""
    runs = f"{comparison.seeds} seed{'s' if comparison.seeds > 1 else ''}"
    if comparison.folds is not None:
        runs += f", {comparison.folds} folds (each of the {comparison.things} tested once for each seed)"
    better = "; lower is better" if comparison.lower_is_better else ""
    lines = [
        f"{comparison.score} on {comparison.num_images} {comparison.split} {comparison.things}, mean ±"
        f" standard deviation over {runs}{better}; ** best, * not distinguishable from it"
    ]
    if comparison.has_intervals:
        what = f"{comparison.unit}s"
        lines.append(
            f"intervals and the test against the best: bootstrap over {comparison.num_units} {what};"
            " the test is paired and draws seeds too"
        )
        if comparison.unit != "group" and 0 < comparison.num_groups < comparison.num_images:
            lines.append(
                f"the {comparison.things} come from {comparison.num_groups} groups; those of one resemble"
                " each other, so that the intervals are too narrow for new groups: compare.resample=group"
            )
    if comparison.split == "val":
        lines.append(
            f"there is no test split: scores are on the validation {comparison.things} that also chose the"
            " best checkpoint, so they are too good"
        )
    if comparison.peak_of == "process":
        lines.append("peak process memory holds the program and its libraries too")
    if any(row.failures for row in comparison.rows):
        lines.append("failed runs:")
        lines += [f"  {row.label}: {reason}" for row in comparison.rows for reason in row.failures]
    return lines


def to_markdown(comparison: Comparison, advice: Sequence[str]) -> str:
    """A page with the advice, the table and its legend."""
    titles = header(comparison)
    rows = [cells(row) for row in comparison.rows]
    marks = [":--", *("--:" for _ in titles[1:])]
    table = [f"| {' | '.join(_escape(cell) for cell in line)} |" for line in (titles, *rows)]
    table.insert(1, f"| {' | '.join(marks)} |")
    models = ", ".join(sorted({row.model for row in comparison.rows}))
    parts = [f"# Comparison: {models} on {comparison.data}", *advice, "\n".join(table)]
    return (
        "\n\n".join([*parts, "\n".join(f"- {_escape(line.strip())}" for line in legend(comparison))]) + "\n"
    )


def _escape(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*").replace("\n", " ")


def to_latex(comparison: Comparison) -> str:
    """A tabular for a paper; needs no package but booktabs."""
    titles = header(comparison)
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
        r"\toprule",
        " & ".join(_latex(title) for title in titles) + r" \\",
        r"\midrule",
    ]
    for row in comparison.rows:
        line = [_latex(cell.rstrip("*")) for cell in cells(row)]
        if row.standing == "best":
            line[1] = rf"\textbf{{{line[1]}}}"
        elif row.standing == "not distinguishable":
            line[1] = rf"\underline{{{line[1]}}}"
        lines.append(" & ".join(line) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text).replace("±", r"$\pm$")


def to_csv(comparison: Comparison) -> str:
    """Every number of the table, unrounded."""
    names = (
        "label", "model", "method", "mean", "std", "low", "high", "standing", "learning_rate",
        "parameters_trainable", "parameters_total", "adapter_bytes", "minutes", "images_per_second",
        "peak_bytes", "unmerged_ms", "merged_ms", "num_runs",
    )  # fmt: skip
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "failures"])
    for row in comparison.rows:
        values = [getattr(row, name) for name in names]
        writer.writerow([*("" if value is None else value for value in values), "; ".join(row.failures)])
    return text.getvalue()
