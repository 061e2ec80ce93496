"""Options that several subcommands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print pure JSON on stdout.")
weights_option = click.option(
    "--weights", metavar="FILE", help="Where the base's weights lie now, if not where they were."
)
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting, e.g. method.rank=8; may be repeated.",
)
config_option = click.option(
    "--config",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file with settings; may be repeated, later ones win.",
)


def flags(**options: tuple[Sequence[str], Any]) -> dict[str, Mapping[str, Any]]:
    """Named options as layers of settings: {"--model": {"model": {"name": ...}}}; unset ones are left out.

    Args:
        **options: option name -> (path of the setting, value or None).
    """
    layers: dict[str, Mapping[str, Any]] = {}
    for name, (path, value) in options.items():
        if value is not None:
            nested: Any = value
            for key in reversed(path):
                nested = {key: nested}
            layers[f"--{name}"] = nested
    return layers


def assignments_to_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Texts such as "data.window=512,512" as {"data.window": ...}; only one level below the section."""
    from segtune.config.load import parse_assignments

    values = parse_assignments(assignments).values
    return {
        f"{section}.{key}": value
        for section, below in values.items()
        for key, value in (below.items() if isinstance(below, Mapping) else {"": below}.items())
    }


def print_json(value: Any) -> None:
    """Prints plain values as JSON on stdout."""
    from segtune.engine.files import to_json

    click.echo(to_json(value))
