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
    help="YAML file with settings, or recipe:NAME; may be repeated, later ones win.",
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
            layers[f"--{name.replace('_', '-')}"] = nested
    return layers


def assignments_to_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Texts such as "data.window=512,512" as {"data.window": ...}, for commands on a finished run.

    Raises:
        SettingsError: a setting is wrong, or none of `data.*`; said before anything heavy is imported.
    """
    from segtune.config.layers import parse_assignments
    from segtune.config.load import load_data_settings
    from segtune.errors import SettingsError

    values = parse_assignments(assignments).values
    others = [
        f"{name}.*: only data.* settings can be changed for a finished run"
        for name in values.keys() - {"data"}
    ]
    if others:
        raise SettingsError(sorted(others))
    load_data_settings(assignments=assignments)
    return {f"data.{key}": value for key, value in values.get("data", {}).items()}


def print_json(value: Any) -> None:
    """Prints plain values as JSON on stdout."""
    from segtune.engine.files import to_json

    click.echo(to_json(value))
