"""`segtune inspect`: what a method does to a model, before anything is trained."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from segtune.cli.options import config_option, flags, json_option, print_json, set_option


@click.command("inspect")
@click.option("--model", metavar="MODEL", help="Name of a model; see `segtune list models`.")
@click.option("--method", metavar="METHOD", help="Name of a method, or several joined by +.")
@click.option("--classes", type=click.IntRange(min=2), metavar="K", help="Number of classes.")
@click.option("--data", type=click.Path(path_type=Path), help="Take classes and image size from here.")
@click.option("--sites", "show_sites", is_flag=True, help="Print every site.")
@config_option
@set_option
@json_option
def command(
    model: str | None,
    method: str | None,
    classes: int | None,
    data: Path | None,
    show_sites: bool,
    files: tuple[Path, ...],
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show sites, parameter counts, adapter size and a memory estimate; no weights, no training."""
    from segtune.config.load import load_settings
    from segtune.data import is_there
    from segtune.errors import UsageError

    given = flags(model=(("model", "name"), model), method=(("method", "name"), method))
    config = load_settings(flags=given, files=files, assignments=assignments)
    if classes is None and data is None:
        raise UsageError("the number of classes is missing", hint="--classes K, or --data DATA")
    if data is not None and not is_there(data):
        raise UsageError(f"there is no data folder or manifest {data}", hint="check --data")

    from segtune.engine.advice import alternatives, compared_with_full, describe
    from segtune.engine.inspect import inspect_config

    report, estimate = inspect_config(config, num_classes=classes, data=data)
    found = alternatives(config, estimate, report["num_classes"])
    against_full = compared_with_full(config, estimate, report["num_classes"])
    if as_json:
        table = [dict(zip(("module", "parameters", "trained"), row, strict=True)) for row in report["table"]]
        lower = [asdict(each) for each in found]
        memory = {**estimate.to_dict(), "alternatives": lower, "compared_with_full": against_full}
        print_json({**report, "table": table, "memory": memory})
        return

    from rich.console import Console

    from segtune.cli.console import make_table

    console = Console(highlight=False)
    rows = [(name, f"{total:,}", f"{part:,}") for name, total, part in report["table"]]
    click.echo(f"{config.model} with {config.method}, {report['num_classes']} classes")
    console.print(make_table(("module", "parameters", "trained"), rows))
    total, trained = report["parameters_total"], report["parameters_trainable"]
    click.echo(f"parameters   {total:,} in the base, {trained:,} trained ({trained / total:.2%})")
    roles = ", ".join(f"{role} {n:,}" for role, n in report["parameters_by_role"].items() if n)
    click.echo(f"roles        {roles}")
    click.echo(f"adapter      {report['adapter_bytes']:,} bytes")
    used = [site for site in report["sites"] if site["used"]]
    click.echo(f"sites        {len(used)} of {len(report['sites'])} in use")
    click.echo(f"merge        {'yes' if report['mergeable'] else '; '.join(report['not_mergeable_because'])}")
    size = "x".join(map(str, estimate.size))
    click.echo(
        f"memory       about {estimate.total / 2**30:.2f} GiB for a step of {estimate.batch_size} images of"
        f" {size} in {estimate.precision}: weights {estimate.weights / 2**20:.0f}, gradients"
        f" {estimate.gradients / 2**20:.0f}, optimiser {estimate.optimizer / 2**20:.0f}, activations"
        f" {estimate.activations / 2**20:.0f}, allocator {estimate.allocator / 2**20:.0f} MiB"
    )
    if report["batch_size_auto"]:
        click.echo(f"             {report['batch_size_auto']}")
    if estimate.program:
        click.echo(f"             the process as a whole about {estimate.process / 2**30:.2f} GiB")
    if against_full is not None:
        click.echo(f"             {against_full}")
    if found:
        click.echo("less memory, or work for an image (products, convolutions, attention)")
    for line in describe(found, estimate):
        click.echo(f"             {line}")
    if show_sites:
        sites = [
            (s["name"], s["kind"], s["part"], str(s["block"]), "used" if s["used"] else "")
            for s in report["sites"]
        ]
        console.print(make_table(("site", "kind", "part", "block", ""), sites))
