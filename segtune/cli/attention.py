"""`segtune attention`: how far the attention of a run's model reaches, before and after tuning."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from segtune.cli.options import assignments_to_settings, json_option, print_json, set_option, weights_option


@click.command("attention")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Default: RUN/attention, where reports look.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="At most this many images, evenly spread.",
)
@weights_option
@set_option
@json_option
def command(
    run: Path,
    images: tuple[Path, ...],
    out: Path | None,
    limit: int,
    weights: str | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure how far each attention head of RUN's model looks on IMAGES (files or folders).

    FOLDER gets attention.json, attention.csv and attention.png: mean attention distances, in pixels,
    of every head of every block, for the base and for the tuned model.
    """
    from segtune.engine.folder import RunFolder, require_run
    from segtune.errors import UsageError

    require_run(run)
    for path in images:
        if not path.exists():
            raise UsageError(f"there is no file or folder {path}", hint="check the path")
    out = out or RunFolder(run).attention
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", hint="give a folder with --out")
    settings = assignments_to_settings(assignments)

    from segtune.report.attention import require_matplotlib, to_dict, write_attention

    require_matplotlib()

    from segtune.cli.console import ConsoleReporter, make_table
    from segtune.engine.session import attention_run

    with closing(ConsoleReporter()) as reporter:
        distances, num_images = attention_run(
            run, images, limit=limit, settings=settings, weights=weights, reporter=reporter
        )
    measured = f"{num_images} image{'s' if num_images > 1 else ''}"
    files = write_attention(
        distances, out, title=f"{run.name}: attention on {measured}", num_images=num_images
    )
    if as_json:
        print_json({**to_dict(distances, num_images), "files": [str(file) for file in files]})
        return

    from rich.console import Console

    rows = [
        [
            f"{base.block}{' (windows)' if base.windowed else ''}",
            *(f"{sum(heads) / len(heads):.1f}" for heads in (base.heads, tuned.heads)),
            f"{min(tuned.heads):.1f} to {max(tuned.heads):.1f}",
        ]
        for base, tuned in zip(distances["base"], distances["tuned"], strict=True)
    ]
    click.echo(f"mean attention distance in pixels, {measured}")
    header = ["block", "base", "tuned", "heads, tuned"]
    Console(highlight=False).print(make_table(header, rows))
    for file in files:
        click.echo(file)
