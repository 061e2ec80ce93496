"""`segtune compare`: which method, on this data, at what cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from segtune.cli.options import config_option, flags, json_option, print_json, set_option

WIDTH_IN_FILES = 200
"""Characters of the table's lines where stdout is no terminal."""


@click.command("compare")
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option("--model", "--models", "models", metavar="MODEL,...", help="Models to compare.")
@click.option("--methods", metavar="METHOD,...", help="Methods to compare; base is the untuned model.")
@click.option("--ranks", metavar="R,...", help="Ranks of the methods that have one.")
@click.option("--placements", metavar="P,...", help="all, first-N, last-N, global, windowed blocks.")
@click.option("--rates", metavar="LR,...", help="Learning rates, each a row of its own.")
@click.option("--search", metavar="LR,...", help="Learning rates to choose from for each row, on validation.")
@click.option("--seeds", type=int, metavar="N", help="Runs of each row.")
@click.option("--folds", type=int, metavar="K", help="Cross-validation with K folds.")
@click.option("--steps", type=int, metavar="N", help="Optimiser steps of every run.")
@click.option("--seconds", type=float, metavar="S", help="Seconds of training of every run.")
@click.option("--engine", type=click.Choice(["local", "ray"]), help="Who runs the cells.")
@click.option("--jobs", type=int, metavar="N", help="Cells that run at once.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder of the comparison.")
@config_option
@set_option
@json_option
def command(
    data: Path | None,
    models: str | None,
    methods: str | None,
    steps: int | None,
    seconds: float | None,
    out: Path | None,
    files: tuple[Path, ...],
    assignments: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Compare tuning methods on DATA: one table of quality and cost.

    Every cell is a run folder below FOLDER; the same command goes on where it was stopped. Settings
    of --set hold for every model and method that has them; a YAML file may have a section `compare`.
    """
    from segtune.comparison.plan import make_plan
    from segtune.config.layers import Layer, parse_assignments, read_yaml
    from segtune.errors import UsageError

    names = {"rates": "learning_rates", "search": "search_rates"}
    given = flags(
        DATA=(("data", "path"), None if data is None else str(data.resolve())),
        models=(("compare", "models"), _names(models)),
        methods=(("compare", "methods"), _names(methods)),
        steps=(("train", "steps"), steps),
        seconds=(("train", "seconds"), seconds),
        **{name: (("compare", names.get(name, name)), value) for name, value in options.items()},
    )
    layers = [read_yaml(path) for path in files]
    layers += [Layer(source, values) for source, values in given.items()]
    plan = make_plan([*layers, parse_assignments(assignments)])
    path = plan.runs(dict.fromkeys((row.label for row in plan.rows), 1e-3))[0].config.data_path
    if path is None:
        raise UsageError("DATA is missing", hint="segtune compare DATA --model MODEL --methods METHOD,METHOD")
    if not path.exists():
        raise UsageError(f"there is no data folder or manifest {path}", hint="check the path")
    if out is None:
        out = Path("comparisons") / path.stem

    from segtune.cli.console import ConsoleReporter, make_table
    from segtune.comparison.advice import advise
    from segtune.comparison.run import compare
    from segtune.comparison.table import cells, header, legend

    reporter = ConsoleReporter()
    reporter.note(f"comparison folder: {out}")
    comparison = compare(plan, out, reporter.note)
    if as_json:
        print_json({**comparison.to_dict(), "advice": advise(comparison)})
    else:
        from rich.console import Console

        console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_IN_FILES)
        console.print(make_table(header(comparison), [cells(row) for row in comparison.rows]))
        for line in [*legend(comparison), "", *advise(comparison)]:
            click.echo(line)
        click.echo(f"written: {out}/compare.md, compare.csv, compare.json, compare.tex")
    if all(row.mean is None for row in comparison.rows):
        raise SystemExit(1)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
