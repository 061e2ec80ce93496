"""`segtune import`: an adapter from another library's format."""

from __future__ import annotations

from pathlib import Path

import click

from segtune.cli.options import json_option, print_json


@click.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="ADAPTER")
@click.option("--model", metavar="MODEL", help="What it was trained on; known for exports of segtune.")
@click.option("--classes", type=click.IntRange(min=2), metavar="K", help="Number of classes.")
@click.option("--weights", metavar="WEIGHTS", help="The base's weights: a file or a published name.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A model.* setting; may be repeated.",
)
@json_option
def command(
    folder: Path,
    out: Path,
    model: str | None,
    classes: int | None,
    weights: str | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Take over a folder of peft (LoRA, DoRA, IA3) as an adapter that evaluate and predict use.

    peft loads the folder onto the model, and the outputs of both are compared before anything is
    written.
    """
    from segtune.config.layers import parse_assignments
    from segtune.errors import UsageError

    values = parse_assignments(assignments).values
    if values.keys() - {"model"}:
        raise UsageError("only model.* settings have a meaning here", hint="--set model.width=32")
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", hint="name a folder that save_pretrained wrote")
    if out.exists():
        raise UsageError(f"{out} exists already", hint="give another name with --out")

    from segtune.engine.peft_import import import_peft, read_base

    base = read_base(
        folder, model=model, settings=dict(values.get("model", {})), weights=weights, num_classes=classes
    )
    report = import_peft(folder, base, out)
    if as_json:
        print_json(report)
        return
    click.echo(f"imported  {report['adapter']}: {report['method']} on {report['layers']} layers")
    sizes = ", ".join(
        f"{height}x{width}: {value:.1e}"
        for (height, width), value in zip(report["sizes"], report["relative_differences"], strict=True)
    )
    click.echo(f"parity    with peft: relative difference {sizes}")
