"""`segtune data`: look at a data set before training on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segtune.cli.options import config_option, json_option, print_json, set_option, weights_option

if TYPE_CHECKING:
    from segtune.data.check_report import CheckReport
    from segtune.data.settings import DataSettings


@click.group("data")
def command() -> None:
    """Look at a data set before training on it."""


@command.command("check")
@click.argument("data", type=click.Path(path_type=Path))
@config_option
@set_option
@click.option(
    "--preview",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a sheet of images and masks (PNG) here.",
)
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write one page with everything here."
)
@click.option(
    "--fix", type=click.Path(path_type=Path), metavar="FOLDER", help="Write a corrected copy of DATA here."
)
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Ask a finished run on DATA which masks it finds unlikely.",
)
@weights_option
@click.option("--no-cache", is_flag=True, help="Open every file, also those that are as they were.")
@json_option
@click.pass_context
def check(
    context: click.Context,
    data: Path,
    files: tuple[Path, ...],
    assignments: tuple[str, ...],
    preview: Path | None,
    html: Path | None,
    fix: Path | None,
    run: Path | None,
    weights: str | None,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Say whether DATA can be trained on, how it is read, and what is wrong with it.

    Exit code 1 where there is an error among the findings; with --fix, where the copy has one.
    """
    from segtune.config.load import load_data_settings
    from segtune.data import is_there
    from segtune.errors import UsageError

    base = None
    if run is not None:
        from segtune.engine.folder import data_layer

        base = data_layer(run)
    settings = load_data_settings(files=files, assignments=assignments, base=base)
    if not is_there(data):
        raise UsageError(f"there is no data folder or manifest {data}", hint="check the path")

    from segtune.data.check import check_data
    from segtune.data.open import open_data

    if no_cache:
        settings = settings.model_copy(update={"cache": False})
    index = open_data(data, settings)
    with _bar("reading") as progress:
        report = check_data(index, settings, progress)
    if run is not None:
        report = _ask(run, report, settings, weights)
    values = report.to_dict()
    lines = [report.text()]
    if preview is not None:
        from segtune.data.preview import write_preview

        lines.append(f"preview  {write_preview(index, preview)}")
    if html is not None:
        from segtune.report.data_page import write_data_page

        lines.append(f"page  {write_data_page(report, html)}")
    if fix is not None:
        from segtune.data.fix import write_fixed

        with _bar("writing") as progress:
            fixed = write_fixed(report, settings, fix, progress)
        report = check_data(fix)
        values["fixed"] = {
            "folder": str(fixed.folder),
            "written": fixed.written,
            "changes": list(fixed.changes),
            "left_out": list(fixed.left_out),
            "check": report.to_dict(),
        }
        lines.append(f"copy  {fix}: {report.verdict}")
        lines += [f"  {change}" for change in fixed.changes]
        lines += [f"  left out: {reason}" for reason in fixed.left_out[:5]]
        if len(fixed.left_out) > 5:
            lines.append(f"  left out: {len(fixed.left_out) - 5} more, see {fix / 'changes.txt'}")
    if as_json:
        print_json(values)
    else:
        click.echo("\n".join(lines))
    if not report.ok:
        context.exit(1)


def _ask(run: Path, report: CheckReport, settings: DataSettings, weights: str | None) -> CheckReport:
    """The report with what a run makes of the masks."""
    from segtune.cli.console import ConsoleReporter
    from segtune.engine.suspects import with_suspects

    with _bar("asking the run") as progress:
        return with_suspects(
            report, run, settings, weights=weights, reporter=ConsoleReporter(), progress=progress
        )


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda finished, total: bar.update(task, completed=finished, total=total)


@command.command("convert")
@click.argument("format", type=click.Choice(["gta5"]))
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--quality",
    type=click.IntRange(1, 95),
    default=95,
    show_default=True,
    help="Quality of the JPEG images.",
)
@json_option
def convert(format: str, source: Path, target: Path, quality: int, as_json: bool) -> None:
    """Write SOURCE in a smaller and faster form to TARGET.

    gta5: JPEG images and masks of label numbers. Stopped, it goes on where it was.
    """
    from segtune.errors import UsageError

    if not source.exists():
        raise UsageError(f"there is no data folder {source}", hint="check the path")

    import dataclasses

    from segtune.data.convert import convert_gta5

    with _bar(f"converting {format}") as progress:
        done = convert_gta5(source, target, quality=quality, progress=progress)
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    click.echo(f"{target}: {done.written} frames written, {done.there} were there")
    if done.written:
        before, after = (size / done.written / 1000 for size in (done.bytes_before, done.bytes_after))
        click.echo(f"  images: {before:.0f} KB each before, {after:.0f} KB now")
    for reason in done.left_out[:5]:
        click.echo(f"  left out: {reason}")
    if len(done.left_out) > 5:
        click.echo(f"  left out: {len(done.left_out) - 5} more")
