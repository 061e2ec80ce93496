"""`segtune merge`: an adapter folded into its base."""

from __future__ import annotations

from pathlib import Path

import click

from segtune.cli.options import json_option, print_json, weights_option


@click.command("merge")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE")
@weights_option
@json_option
def command(run: Path, out: Path, weights: str | None, as_json: bool) -> None:
    """Fold the adapter of RUN into its base and write it to FILE (.safetensors).

    The result is compared with the unmerged model before and after writing; FILE serves as
    model.weights of another run.
    """
    from segtune.engine.folder import require_run
    from segtune.errors import UsageError

    require_run(run)
    if out.suffix != ".safetensors":
        raise UsageError(
            f"a merged model is a .safetensors file, not {out.name!r}", hint="--out model.safetensors"
        )
    if out.exists():
        raise UsageError(f"{out} exists already", hint="give another name with --out")

    from segtune.engine.merge import merge_run
    from segtune.engine.run import load_run

    report = merge_run(load_run(run, weights=weights), out)
    if as_json:
        print_json(report)
        return
    click.echo(f"merged  {report['file']} ({report['bytes']:,} bytes)")
    if report["quantize"] != "none":
        click.echo(
            f"base    trained on in {report['quantize']}: the file holds the floats that these weights"
            " stand for, not those of the original base"
        )
    for what, values in report["relative_differences"].items():
        sizes = ", ".join(
            f"{height}x{width}: {value:.1e}"
            for (height, width), value in zip(report["sizes"], values, strict=True)
        )
        click.echo(f"parity  {what}: relative difference {sizes} (allowed {report['tolerance']:.0e})")
