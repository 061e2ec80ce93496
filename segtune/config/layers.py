"""Settings as they are written: YAML files, assignments on the command line, dotted keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segtune.errors import UnknownNameError, UsageError
from segtune.registry import nearest

SECTIONS = ("model", "method", "data", "loss", "optim", "train")
NAMED = ("model", "method", "loss")
"""Sections that may be written as a name alone: `model: unet`."""
ABOUT = "recipe"
"""A section of a file that says what its settings are; no setting itself."""
RECIPE = "recipe:"
"""What a recipe's name begins with where a file of settings is asked for."""
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
"""The recipes that come with the package."""


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


def recipe_path(name: str) -> Path:
    """The file of a recipe of the package.

    Raises:
        UnknownNameError: there is no such recipe.
    """
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if name not in names:
        meant = nearest(name, names)
        raise UnknownNameError(
            f"there is no recipe called {name!r}",
            hint=f"did you mean {meant!r}?" if meant else "see `segtune recipes`",
        )
    return RECIPES / f"{name}.yaml"


def read_yaml(path: Path) -> Layer:
    """Reads a layer of settings from a YAML file; what it says about itself is left out.

    Args:
        path: of the file, or "recipe:NAME".

    Raises:
        UsageError: the file is missing or is not a mapping of sections.
    """
    values = read_mapping(path)
    return Layer(path.name, {key: value for key, value in values.items() if key != ABOUT})


def read_mapping(path: Path) -> dict[str, Any]:
    """Everything that a YAML file of settings holds; see `read_yaml`."""
    if str(path).startswith(RECIPE):
        path = recipe_path(str(path).removeprefix(RECIPE))
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
    return values


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
