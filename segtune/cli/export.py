"""`segtune export`: an adapter in the format of another library."""

from __future__ import annotations

from pathlib import Path

import click

from segtune.cli.options import json_option, print_json, weights_option


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "library", required=True, type=click.Choice(["peft"]), help="Whose format.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER")
@weights_option
@json_option
def command(run: Path, library: str, out: Path, weights: str | None, as_json: bool) -> None:
    """Write the adapter of RUN to FOLDER in the format of another library.

    peft: PeftModel.from_pretrained(base, FOLDER) loads it. The folder is loaded back and compared with
    the run before it appears under its name.
    """
    from segtune.engine.folder import require_run
    from segtune.errors import UsageError

    require_run(run)
    if out.exists():
        raise UsageError(f"{out} exists already", hint="give another name with --out")

    from segtune.engine.peft_export import export_peft
    from segtune.engine.run import load_run

    report = export_peft(load_run(run, weights=weights), out)
    if as_json:
        print_json(report)
        return
    click.echo(f"exported  {report['folder']} ({report['bytes']:,} bytes: {', '.join(report['files'])})")
    click.echo(f"holds     {report['peft_type']} on {report['layers']} layers")
    if report["modules_to_save"]:
        click.echo(f"and       {len(report['modules_to_save'])} trained modules as a whole (modules_to_save)")
    if report["quantize"] != "none":
        click.echo(
            f"base      trained on in {report['quantize']}, exported for the original: logits differ by up to"
            f" {max(report['difference_of_quantized']):.1e} of the largest"
        )
    for what, values in report["relative_differences"].items():
        sizes = ", ".join(
            f"{height}x{width}: {value:.1e}"
            for (height, width), value in zip(report["sizes"], values, strict=True)
        )
        click.echo(f"parity    {what}: relative difference {sizes}")
