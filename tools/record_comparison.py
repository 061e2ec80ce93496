"""Keeps the table of a comparison as a file of benchmarks/, with whether its repetitions gave the same.

Usage: python tools/record_comparison.py FOLDER NAME TITLE [WHAT=OTHER_FOLDER ...]

FOLDER is one that `segtune compare` wrote; benchmarks/NAME.yaml holds its settings. Every OTHER_FOLDER is the
same sweep done in another way; its scores are compared cell by cell.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def main(arguments: Sequence[str]) -> int:
    """Writes benchmarks/NAME.json."""
    folder, name, title, *others = arguments
    settings = BENCHMARKS / f"{name}.yaml"
    if not settings.is_file():
        print(f"{settings} is missing: it holds the settings of the comparison", file=sys.stderr)
        return 1
    found = _read(folder)
    again = {what: _equal(found, _read(path)) for what, path in (other.split("=", 1) for other in others)}
    kept = {key: value for key, value in found.items() if key not in ("data", "trials")}
    kept = {
        "title": title,
        "settings": settings.name,
        "data": Path(found["data"]).name,
        "again": again,
        **kept,
    }
    (BENCHMARKS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0


def _read(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(folder) / "compare.json").read_text(encoding="utf-8"))
    return content


def _equal(one: dict[str, Any], other: dict[str, Any]) -> dict[str, int]:
    """How many cells have the same score in both."""
    scores, others = (
        {(cell["row"], cell["seed"], cell["fold"]): cell["score"] for cell in found["cells"]}
        for found in (one, other)
    )
    return {"cells": len(scores), "equal": sum(others.get(cell) == score for cell, score in scores.items())}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
