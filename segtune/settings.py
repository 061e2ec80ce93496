"""The base class of every component's settings, and how they are read without importing torch.

A component (a method, a model, a loss, a format) declares its settings in its own file as a
subclass of `Settings`, so that a new component never edits a schema elsewhere. A wrong key must
be answered in a fraction of a second, while importing torch alone takes seconds; therefore
`read_settings` compiles only the settings classes of a file, found in its syntax tree.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

LIGHT_MODULES = frozenset(
    {"__future__", "collections.abc", "typing", "pydantic", "segtune.settings", "segtune.types"}
)
"""Modules that a settings class may take names from (and other settings classes, by name)."""


class Settings(BaseModel):
    """Frozen settings of one component; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_from_text(cls, values: Any) -> Any:
        """Lets "256,256", "a" and 3 stand for lists, as typed on a command line."""
        if not isinstance(values, dict):
            return values
        lists = {
            name: _words(info.annotation) | {"auto"}
            for name, info in cls.model_fields.items()
            if _takes_list(info.annotation)
        }
        return {key: _as_list(value, lists[key]) if key in lists else value for key, value in values.items()}


def _as_list(value: Any, words: frozenset[Any]) -> Any:
    if isinstance(value, str) and value not in words:
        return [item.strip() for item in value.split(",")]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _takes_list(annotation: Any) -> bool:
    if get_origin(annotation) is tuple:
        return True
    return get_origin(annotation) in {Union, types.UnionType} and any(map(_takes_list, get_args(annotation)))


def _words(annotation: Any) -> frozenset[Any]:
    """The single values, such as "auto", that may stand in place of a list."""
    if get_origin(annotation) is Literal:
        return frozenset(get_args(annotation))
    if get_origin(annotation) in {Union, types.UnionType}:
        return frozenset().union(*map(_words, get_args(annotation)))
    return frozenset()


def source_path(module: str) -> Path:
    """The file of a module, found without running it (parent packages are imported)."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"no source for {module}"
    return Path(spec.origin)


@functools.cache
def read_docstring(module: str) -> str:
    """The docstring of a module, read from its file without importing it."""
    return ast.get_docstring(ast.parse(source_path(module).read_text(encoding="utf-8"))) or ""


@functools.cache
def read_settings(module: str) -> dict[str, type[Settings]]:
    """The settings classes of a module, by name, compiled alone from its source.

    Args:
        module: dotted name, e.g. "segtune.methods.lora".

    Returns:
        Every class of the file whose name ends in "Settings", in the order of the file.
    """
    path = source_path(module)
    # pydantic resolves annotations through sys.modules, hence a module object of its own
    holder = types.ModuleType(f"{module}:settings")
    sys.modules[holder.__name__] = holder
    kept: list[ast.stmt] = []
    found: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module in LIGHT_MODULES:
                kept.append(node)
            elif node.module.startswith("segtune."):
                for alias in node.names:
                    if alias.name.endswith("Settings"):
                        setattr(holder, alias.asname or alias.name, read_settings(node.module)[alias.name])
        elif isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
            kept.append(node)
            found.append(node.name)
    exec(compile(ast.Module(body=kept, type_ignores=[]), str(path), "exec"), holder.__dict__)
    return {name: holder.__dict__[name] for name in found}
