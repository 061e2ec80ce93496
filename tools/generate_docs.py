"""Writes docs/methods from the docstrings and settings of the method files, without importing torch."""

from __future__ import annotations

import types
from collections.abc import Collection
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from segtune.methods import METHODS
from segtune.settings import Settings, read_settings

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "methods"
NOTICE = "<!-- Written by `make docs` from the method files; change those. -->"
SIGNS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
PLAIN = {int: "whole number", float: "number", bool: "true, false", str: "text", type(None): "null"}


def render() -> dict[str, str]:
    """Every page of docs/methods: file name -> content."""
    pages = {_file(name): _page(name) for name in METHODS}
    return {"README.md": _overview(), **pages}


def _file(name: str) -> str:
    """A method's page; not every system allows a colon in the name of a file."""
    return f"{name.removesuffix(':').replace(':', '-')}.md"


def _overview() -> str:
    base = read_settings("segtune.methods.base")
    common, placement = base["MethodSettings"], base["PlacementSettings"]
    rows = [f"| [`{name}`]({_file(name)}) | {METHODS.summary(name)} |" for name in METHODS]
    choosing = [f"`{name}`" for name in METHODS if issubclass(METHODS.settings(name), placement)]
    return "\n".join(
        [
            NOTICE,
            "",
            "# Methods",
            "",
            "Several are combined with `+`, for example `--method lora+norm`.",
            "",
            "| Method | What it does |",
            "| --- | --- |",
            *rows,
            "",
            "## Settings of every method",
            "",
            *_settings_table(common, set(common.model_fields)),
            "",
            "## Settings of methods that choose among the layers",
            "",
            f"Those are {', '.join(choosing)}.",
            "",
            *_settings_table(placement, placement.model_fields.keys() - common.model_fields.keys()),
            "",
        ]
    )


def _page(name: str) -> str:
    settings = METHODS.settings(name)
    base = read_settings("segtune.methods.base")
    common = base["MethodSettings"].model_fields.keys()
    places = base["PlacementSettings"].model_fields.keys()
    own = settings.model_fields.keys() - common - places
    lines = [NOTICE, "", f"# {name}", "", f"{METHODS.summary(name)}.", ""]
    for heading, text in _sections(METHODS.documentation(name)):
        lines += [f"## {heading}", "", text, ""]
    lines += ["## Settings", ""]
    if own:
        lines += [*_settings_table(settings, own), ""]
    shared = "every method"
    if places <= settings.model_fields.keys():
        shared += " and of methods that choose among the layers"
    lines += [f"{'And those' if own else 'Those'} of {shared}: see the [overview](README.md).", ""]
    return "\n".join(lines)


def _sections(docstring: str) -> list[tuple[str, str]]:
    """Headings, each with the indented text below it; the summary line is left out."""
    sections: list[tuple[str, list[str]]] = []
    for line in docstring.splitlines()[1:]:
        if line and not line.startswith(" "):
            sections.append((line, []))
        elif sections:
            sections[-1][1].append(line.strip())
    return [(heading, "\n".join(lines).strip()) for heading, lines in sections]


def _settings_table(settings: type[Settings], names: Collection[str]) -> list[str]:
    lines = ["| Setting | Default | Values | What it is |", "| --- | --- | --- | --- |"]
    for name, info in settings.model_fields.items():
        if name in names:
            cells = (f"`method.{name}`", f"`{_value(info.default)}`", _values(info), info.description or "")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _value(value: Any) -> str:
    """A value as YAML would have it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _values(info: FieldInfo) -> str:
    bounds = [
        f"{SIGNS[type(bound)][1]} {getattr(bound, SIGNS[type(bound)][0])}"
        for bound in info.metadata
        if type(bound) in SIGNS
    ]
    bounds += ["at least one" for bound in info.metadata if bound == MinLen(1)]
    return ", ".join([_type(info.annotation), *bounds])


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in {Union, types.UnionType}:
        return " or ".join(_type(argument) for argument in arguments)
    if origin is tuple:
        assert arguments[1:] == (...,), f"no words for {annotation}"
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    return PLAIN[annotation]


def main() -> None:
    """Writes the pages, and removes those of methods that are gone."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    pages = render()
    for path in FOLDER.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
