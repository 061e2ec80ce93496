"""The part of docs/results.md about comparisons, from benchmarks/compare_*.json; used by generate_results.py.

Such a file is the compare.json of `segtune compare` with what it was run with: "title", "settings" (the YAML
file beside it) and "again", the same sweep by another engine or after a kill.
"""

from __future__ import annotations

from typing import Any

from pages import section

CLOCK = ("train min", "images/s", "infer ms", "merged ms")
"""Columns that mean nothing where other programs ran beside."""


def comparison(data: dict[str, Any]) -> list[str]:
    """The table of a sweep without the clock, and what its words say."""
    found = data["table"]
    kept = [place for place, name in enumerate(found["header"]) if name not in CLOCK]
    header, *rows = [[row[place] for place in kept] for row in (found["header"], *found["rows"])]
    repeated = [
        f" {what}: {again['equal']} of {again['cells']} runs have the same score to the last digit."
        for what, again in data["again"].items()
    ]
    what = (
        f"`segtune compare {data['data']} --config benchmarks/{data['settings']}`; seconds are left out, as"
        f" other programs ran beside.{''.join(repeated)}"
    )
    return [*section(data["title"], what, header, rows), "", *(f"- {line}" for line in data["legend"])]
