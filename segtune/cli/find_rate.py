"""`segtune find-rate`: which learning rate, from the loss while it rises."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from segtune.cli.options import config_option, flags, json_option, print_json, set_option


@click.command("find-rate")
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help="Name of a model; see `segtune list models`.")
@click.option("--method", metavar="METHOD", help="Name of a method, or several joined by +.")
@click.option("--steps", default=100, show_default=True, help="Of each ramp.")
@click.option("--repeats", default=2, show_default=True, help="Ramps, each with other images.")
@click.option("--low", default=1e-6, show_default=True, help="First rate.")
@click.option("--high", default=1.0, show_default=True, help="Last rate.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="For a figure and numbers.")
@config_option
@set_option
@json_option
def command(
    data: Path | None,
    model: str | None,
    method: str | None,
    steps: int,
    repeats: int,
    low: float,
    high: float,
    out: Path | None,
    files: tuple[Path, ...],
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Suggest a learning rate for training on DATA, and leave everything as it is.

    The rate rises from step to step until the loss has risen too far; the suggestion is a tenth of the
    rate at which the mean loss is lowest, or none where that is not clear.
    """
    from segtune.config.load import load_settings
    from segtune.data import is_there
    from segtune.errors import UsageError

    given = flags(
        DATA=(("data", "path"), None if data is None else str(data)),
        model=(("model", "name"), model),
        method=(("method", "name"), method),
    )
    config = load_settings(flags=given, files=files, assignments=assignments)
    if config.data_path is None:
        raise UsageError("DATA is missing", hint="segtune find-rate DATA --model MODEL --method METHOD")
    if not is_there(config.data_path):
        raise UsageError(f"there is no data folder or manifest {config.data_path}", hint="check the path")
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", hint="give a folder with --out")
    if out is not None:
        from segtune.report.attention import require_matplotlib

        require_matplotlib()

    from segtune.cli.console import ConsoleReporter
    from segtune.engine.rate_finder import find_rate

    with closing(ConsoleReporter()) as reporter:
        found = find_rate(config, steps=steps, repeats=repeats, low=low, high=high, reporter=reporter)
    paths = []
    if out is not None:
        from segtune.report.rates import write_rates

        paths = write_rates(found, out, f"{config.model} with {config.method} on {config.data_path.name}")
    if as_json:
        print_json({**found.to_dict(), "files": [str(path) for path in paths]})
        return
    if found.suggestion is None:
        click.echo(f"no suggestion: {found.reason}")
    else:
        click.echo(f"--set optim.learning_rate={found.suggestion:g}   {found.reason}")
    if found.diverged is not None:
        click.echo(f"from {found.diverged:.2g} on the loss had risen too far")
    for path in paths:
        click.echo(path)
