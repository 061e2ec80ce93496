"""`segtune data`: look at a data set before training on it."""

from __future__ import annotations

from pathlib import Path

import click

from segtune.cli.options import config_option, json_option, print_json, set_option


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
@json_option
@click.pass_context
def check(
    context: click.Context,
    data: Path,
    files: tuple[Path, ...],
    assignments: tuple[str, ...],
    preview: Path | None,
    as_json: bool,
) -> None:
    """Say how DATA is read, and what is wrong with it.

    Exit code 1 where there is an error among the findings.
    """
    from segtune.config.load import load_data_settings
    from segtune.data import is_there
    from segtune.errors import UsageError

    settings = load_data_settings(files=files, assignments=assignments)
    if not is_there(data):
        raise UsageError(f"there is no data folder or manifest {data}", hint="check the path")

    from segtune.data.check import check_data
    from segtune.data.open import open_data

    index = open_data(data, settings)
    report = check_data(index, settings)
    if preview is not None:
        from segtune.data.preview import write_preview

        write_preview(index, preview)
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(report.text())
        if preview is not None:
            click.echo(f"preview  {preview}")
    if not report.ok:
        context.exit(1)


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

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from segtune.data.convert import convert_gta5

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"converting {format}", total=None)
        done = convert_gta5(
            source,
            target,
            quality=quality,
            progress=lambda finished, total: bar.update(task, completed=finished, total=total),
        )
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
