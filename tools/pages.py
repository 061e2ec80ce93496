"""What the programs share that write pages of docs/ from benchmarks/*.json."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARKS = REPOSITORY / "benchmarks"

Row = dict[str, Any]
Section = Callable[[dict[str, Any]], list[str]]
"""Of the content of a JSON file: the lines of its part of a page."""


def write(target: Path, text: str, options: Sequence[str]) -> int:
    """Writes a page, or with --check says whether it is up to date."""
    if "--check" not in options:
        target.write_text(text, encoding="utf-8")
    elif not target.is_file() or target.read_text(encoding="utf-8") != text:
        print(f"{target.relative_to(REPOSITORY)} is out of date: run `make docs`", file=sys.stderr)
        return 1
    return 0


def load(name: str) -> dict[str, Any]:
    """A benchmark's settings and numbers."""
    data: dict[str, Any] = json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))
    return data


def sections(parts: Mapping[str, Section]) -> list[str]:
    """The parts whose benchmark was measured, each with the words of benchmarks/NAME.md below it."""
    lines = []
    for name, part in parts.items():
        if (BENCHMARKS / f"{name}.json").is_file():
            lines += ["", *part(load(name))]
            said = BENCHMARKS / f"{name}.md"
            if said.is_file():
                lines += ["", said.read_text(encoding="utf-8").strip()]
    return lines


def section(title: str, what: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A heading, what was measured, and one table."""
    return [f"## {title}", "", what, "", *table(header, rows)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; all columns but the first are right-aligned."""
    marks = [":--", *("--:" for _ in header[1:])]
    return [f"| {' | '.join(row)} |" for row in (header, marks, *rows)]


def grouped(rows: Iterable[Row], key: str = "name") -> dict[str, list[Row]]:
    """The rows of each name, in the order in which they come."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def mib(size: int) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:,.0f}"


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard deviation of a sample."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def ratio(values: Sequence[float], others: Sequence[float]) -> str:
    """Median of the repeats' ratios, with the lowest and the highest."""
    ratios = [value / other for value, other in zip(values, others, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
