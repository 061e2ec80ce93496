"""The part of docs/results.md about comparisons, from benchmarks/compare_*.json; used by generate_results.py.

Such a file is the compare.json of `segtune compare` with what it was run with: "title", "settings" (the YAML
file beside it) and "again", the same sweep by another engine or after a kill.
"""

from __future__ import annotations

from typing import Any

CLOCK = ("train min", "images/s", "infer ms", "merged ms")
"""Columns that mean nothing where other programs ran beside."""


def rows(data: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table without the clock, its header first."""
    header = data["table"]["header"]
    kept = [place for place, name in enumerate(header) if name not in CLOCK]
    return [tuple(row[place] for place in kept) for row in (header, *data["table"]["rows"])]


def lines(data: dict[str, Any]) -> list[str]:
    """What stands in front of the table."""
    repeated = [
        f" {what}: {found['equal']} of {found['cells']} runs have the same score to the last digit."
        for what, found in data["again"].items()
    ]
    return [
        f"## {data['title']}",
        "",
        f"`segtune compare {data['data']} --config benchmarks/{data['settings']}`; seconds are left out, as"
        f" other programs ran beside.{''.join(repeated)}",
    ]
