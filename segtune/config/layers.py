"""Settings as they are written: YAML files, assignments on the command line, dotted keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segtune.errors import UsageError

SECTIONS = ("model", "method", "data", "loss", "optim", "train")
NAMED = ("model", "method", "loss")
"""Sections that may be written as a name alone: `model: unet`."""


class _YamlLoader(yaml.SafeLoader):
    """YAML without dates: a folder called 2024-05-01 stays a text."""


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class Layer:
    """Settings from one place; later layers win."""

    source: str
    """Where they came from, as shown to the user: a file name, "--set", "--model"."""
    values: Mapping[str, Any]
    """Nested mapping with the sections as its keys."""


def read_yaml(path: Path) -> Layer:
    """Reads a layer of settings from a YAML file.

    Raises:
        UsageError: the file is missing or is not a mapping of sections.
    """
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read the settings file {path}: {error.strerror}", hint="check --config"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}", hint="check the indentation") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UsageError(
            f"{path} holds {type(values).__name__}, not settings",
            hint=f"write sections: {', '.join(SECTIONS)}",
        )
    return Layer(path.name, values)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_YamlLoader)


def parse_assignments(assignments: Iterable[str]) -> Layer:
    """Turns "key.sub=value" texts, as given with --set, into a layer; values are read as YAML.

    Raises:
        UsageError: a text is no assignment.
    """
    pairs: list[tuple[str, Any]] = []
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text!r} is not an assignment", hint="--set method.rank=8")
        try:
            value = _parse_yaml(raw) if raw else None
        except (yaml.YAMLError, ValueError, RecursionError):
            value = raw  # globs such as *_day are no YAML
        pairs.append((key.strip(), value))
    return nest(pairs, "--set")


def nest(pairs: Iterable[tuple[str, Any]], source: str) -> Layer:
    """A layer from dotted keys and their values; later ones win.

    Raises:
        UsageError: a key has an empty part, or stands inside of another one's value.
    """
    values: dict[str, Any] = {}
    for key, value in pairs:
        whole = f"{key}.name" if key in NAMED and isinstance(value, str) else key
        *path, last = whole.split(".")
        if not all([*path, last]):
            raise UsageError(f"{source} {key!r} is no setting", hint="keys are such as method.rank")
        node = values
        for name in path:
            below = node.setdefault(name, {})
            if not isinstance(below, dict):
                raise UsageError(f"{source} {key!r}: {name} has a value of its own already")
            node = below
        node[last] = value
    return Layer(source, values)
