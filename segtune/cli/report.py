"""`segtune report`: one page about runs, or about a comparison."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Default: the first folder.")
@click.option("--formats", default="svg,png", show_default=True, help="Of the figures: svg, png, pdf.")
@click.option("--panels/--no-panels", default=True, help="Predict and show best, median and worst images.")
def command(runs: tuple[Path, ...], out: Path | None, formats: str, panels: bool) -> None:
    """Write report.html and figures about RUNS, or about the folder of a comparison.

    The page is one file that opens from disk and needs no network.
    """
    from segtune.cli.console import ConsoleReporter
    from segtune.engine.folder import require_run
    from segtune.report.write import write_report

    for path in runs:
        if not (path / "compare.json").is_file():
            require_run(path)
    names = [name.strip() for name in formats.split(",") if name.strip()]
    page = write_report(list(runs), out or runs[0], formats=names, panels=panels, tell=ConsoleReporter().note)
    click.echo(page)
