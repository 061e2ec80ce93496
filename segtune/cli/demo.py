"""`segtune demo`: the whole job offline, on generated scenes."""

from __future__ import annotations

from pathlib import Path

import click

from segtune.cli.options import json_option, print_json


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Default: runs/demo-N.")
@json_option
def command(out: Path | None, as_json: bool) -> None:
    """Adapt a small U-Net from day to dusk with head, lora and full; no network, no data needed.

    Takes about two minutes on two cores. Prints mIoU before and after, trained parameters, adapter
    size, seconds and memory, and writes a panel of overlays.
    """
    from segtune.errors import UsageError

    if out is None:
        out = _free_folder()
    elif out.exists() and any(out.iterdir()):
        raise UsageError(f"the folder {out} is not empty", hint="give another one with --out")

    from segtune.demo.job import run_demo

    result = run_demo(out, lambda line: click.echo(line, err=True))
    if as_json:
        print_json(result)
        return

    from rich.console import Console

    from segtune.cli.console import make_table

    before = result["miou_before"]
    rows = [("base, untouched", f"{before:.4f}", f"{before:.4f}", "0", "0", "", "")]
    rows += [
        (
            row["method"],
            f"{before:.4f}",
            f"{row['miou']:.4f}",
            f"{row['parameters_trainable']:,}",
            f"{row['adapter_bytes']:,}",
            f"{row['train_seconds']:.1f}",
            f"{row['peak_process_bytes'] / 2**20:.0f}",
        )
        for row in result["rows"]
    ]
    header = ("method", "mIoU before", "after", "trained", "adapter bytes", "seconds", "process MiB")
    click.echo(
        f"U-Net, trained on generated day scenes, adapted to {result['num_train']} scenes at dusk;"
        f" scored on {result['num_test']} others"
    )
    Console(highlight=False, width=100).print(make_table(header, rows))
    click.echo(f"best here: {result['best']}; one run, one seed: small differences mean nothing")
    click.echo(f"pictures   {result['panel']}")
    click.echo(f"runs       {out}")


def _free_folder() -> Path:
    number = 1
    while (folder := Path("runs") / f"demo-{number}").exists():
        number += 1
    return folder
