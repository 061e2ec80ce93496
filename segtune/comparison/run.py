"""A whole comparison: search learning rates, run the cells, write the table."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtune.comparison.advice import advise
from segtune.comparison.cell import CellFolder, settings_text
from segtune.comparison.cluster import run_on_ray
from segtune.comparison.local import run_local
from segtune.comparison.plan import Cell, Plan
from segtune.comparison.results import Comparison, collect
from segtune.comparison.table import cells, header, legend, to_csv, to_latex, to_markdown
from segtune.engine.files import write_json, write_text
from segtune.engine.folder import RunFolder
from segtune.errors import UsageError

ENGINES = {"local": run_local, "ray": run_on_ray}

Told = Callable[[str], None]


def compare(plan: Plan, out: Path, tell: Told = lambda line: None) -> Comparison:
    """Runs everything that is not done yet and writes compare.md, .csv, .json and .tex.

    Cells that were finished before are never repeated, those that were interrupted go on from their
    last checkpoint, and those that failed are tried again. The files are written anew after every
    round of cells, so that an interrupted comparison shows what it has.

    Args:
        plan: of the comparison.
        out: its folder; new, empty, or that of a comparison to go on with.
        tell: hears what happens, line by line.

    Returns:
        What was found out.

    Raises:
        UsageError: the folder holds something else, or another process works in it.
    """
    _claim(out)
    with (out / "compare.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is working on the comparison in {out}",
                hint="wait for it, or give another --out",
            ) from None
        return _run(plan, out, tell)


def _claim(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", hint="give a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / "cells").is_dir():
        raise UsageError(
            f"{out} is not empty and not the folder of a comparison", hint="give another folder with --out"
        )
    (out / "cells").mkdir(parents=True, exist_ok=True)


def _run(plan: Plan, out: Path, tell: Told) -> Comparison:
    failures: dict[str, str] = {}
    trials = _on_disk(plan.trials(), out)
    rates: dict[str, float] = {}
    tried: list[dict[str, Any]] = []
    if trials:
        tell(f"{len(trials)} trials of learning rates; the validation score decides")
        failures |= _execute(plan, trials, tell)
        rates, tried = _choose(plan, trials, failures)
        for label, rate in rates.items():
            tell(f"{label}: learning rate {rate:g}")
        missing = [row.label for row in plan.rows if row.is_trained and row.label not in rates]
        failures |= {
            label: next(failures[c.name] for c, _ in trials if c.row.label == label) for label in missing
        }
    runs = _on_disk(plan.runs(rates), out)
    done = sum(folder.is_done for _, folder in runs)
    tell(f"{len(runs)} runs of {len(plan.rows)} rows" + (f"; {done} are done already" if done else ""))
    failures |= _execute(plan, runs, tell)
    comparison = collect(plan, runs, tried, failures)
    write_files(comparison, out)
    return comparison


def write_files(comparison: Comparison, out: Path) -> None:
    """Writes the table in every form."""
    table = {"header": header(comparison), "rows": [cells(row) for row in comparison.rows]}
    shown = {"advice": advise(comparison), "table": table, "legend": legend(comparison)}
    write_json(out / "compare.json", {**comparison.to_dict(), **shown})
    write_text(out / "compare.md", to_markdown(comparison, advise(comparison)))
    write_text(out / "compare.csv", to_csv(comparison))
    write_text(out / "compare.tex", to_latex(comparison))


def _on_disk(planned: Sequence[Cell], out: Path) -> list[tuple[Cell, CellFolder]]:
    return [(cell, CellFolder(out, cell.name)) for cell in planned]


def _execute(plan: Plan, planned: Sequence[tuple[Cell, CellFolder]], tell: Told) -> dict[str, str]:
    """Runs the cells that are not done; name of each that failed -> reason."""
    open_ = [(cell, folder) for cell, folder in planned if not folder.is_done]
    work = [(folder, settings_text(cell.config)) for cell, folder in open_]
    failures = {}
    finished = len(planned) - len(open_)
    for place, reason in ENGINES[plan.settings.engine](work, plan.settings) if work else ():
        cell, folder = open_[place]
        finished += 1
        if reason is not None:
            failures[cell.name] = reason
        told = f"failed: {reason} (log: {folder.log})" if reason is not None else _told(plan, cell, folder)
        tell(f"[{finished}/{len(planned)}] {_title(cell)}: {told}")
    return failures


def _title(cell: Cell) -> str:
    parts = [cell.row.label, f"seed {cell.seed}"]
    parts += [] if cell.fold is None else [f"fold {cell.fold}"]
    parts += [] if cell.trial is None else [f"learning rate {cell.trial:g}"]
    return ", ".join(parts)


def _told(plan: Plan, cell: Cell, folder: CellFolder) -> str:
    result = json.loads(RunFolder(folder.run).result.read_text(encoding="utf-8"))
    split = "val" if cell.trial is not None or not result["test"] else "test"
    score = ((result[split] or {}).get("scores") or {}).get(plan.score)
    shown = "no score" if score is None else f"{plan.score} {score:.4f} ({split})"
    return f"{shown}, {result['train_seconds']:.0f} s of training"


def _choose(
    plan: Plan, trials: Sequence[tuple[Cell, CellFolder]], failures: Mapping[str, str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The rate with the best validation score for each row, and what was tried.

    Raises:
        UsageError: there is no validation split to decide by.
    """
    tried: list[dict[str, Any]] = []
    for cell, folder in trials:
        score = None
        if cell.name not in failures:
            result = json.loads(RunFolder(folder.run).result.read_text(encoding="utf-8"))
            if not result["val"]:
                raise UsageError(
                    "a search of learning rates needs a validation split", hint="set data.val_fraction"
                )
            score = result["val"]["scores"].get(plan.score)
        tried.append(
            {
                "row": cell.row.label,
                "learning_rate": cell.trial,
                "val": score,
                "failure": failures.get(cell.name),
            }
        )
    rates: dict[str, float] = {}
    best: dict[str, float] = {}
    for trial in tried:
        if trial["val"] is None:
            continue
        value = plan.sign * trial["val"]
        if value > best.get(trial["row"], float("-inf")):
            best[trial["row"]] = value
            rates[trial["row"]] = trial["learning_rate"]
    return rates, tried
