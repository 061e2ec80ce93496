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
    from segtune.errors import UsageError

    settings = load_data_settings(files=files, assignments=assignments)
    if not data.exists():
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
