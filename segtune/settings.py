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
from typing import Any

from pydantic import BaseModel, ConfigDict

LIGHT_MODULES = frozenset({"__future__", "collections.abc", "typing", "pydantic", "segtune.settings"})
"""Modules that a settings class may take names from (and other settings classes, by name)."""


class Settings(BaseModel):
    """Frozen settings of one component; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


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
    namespace: dict[str, Any] = {"__name__": f"{module}:settings"}
    sys.modules.setdefault(namespace["__name__"], _namespace_module(namespace))
    kept: list[ast.stmt] = []
    found: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module in LIGHT_MODULES:
                kept.append(node)
            elif node.module.startswith("segtune."):
                wanted = {a.name: a.asname or a.name for a in node.names if a.name.endswith("Settings")}
                for name, local in wanted.items():
                    namespace[local] = read_settings(node.module)[name]
        elif isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
            kept.append(node)
            found.append(node.name)
    code = compile(ast.Module(body=kept, type_ignores=[]), str(path), "exec")
    # pydantic resolves annotations through sys.modules, hence the module object made above.
    module_dict = sys.modules[namespace["__name__"]].__dict__
    module_dict.update(namespace)
    exec(code, module_dict)
    return {name: module_dict[name] for name in found}


def _namespace_module(namespace: dict[str, Any]) -> types.ModuleType:
    module = types.ModuleType(namespace["__name__"])
    module.__dict__.update(namespace)
    return module
