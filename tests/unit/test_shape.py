"""The shape of the package: who may import whom, how long files are, what is public."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import segtune

ROOT = Path(segtune.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LONGEST = 400

SHARED = {"segtune.types", "segtune.errors", "segtune.registry", "segtune.settings"}
SIBLINGS = {"models", "methods", "data", "losses", "metrics", "trackers"}
REGISTRIES = {f"segtune.{name}" for name in SIBLINGS}
"""The packages' own modules: a table of names, nothing else."""
CONFIG = {*SHARED, *REGISTRIES, "segtune.data.settings"}

ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "settings": set(),
    "registry": {"segtune.errors", "segtune.settings"},
    **{name: {*SHARED, f"segtune.{name}"} for name in SIBLINGS},
    "config": {*CONFIG, "segtune.config"},
    "engine": {"segtune", *SHARED, *REGISTRIES, "segtune.config", "segtune.engine"},
    "comparison": {"segtune", *SHARED, *REGISTRIES, "segtune.config", "segtune.engine", "segtune.comparison"},
    "report": {"segtune", *SHARED, *REGISTRIES, "segtune.config", "segtune.engine", "segtune.report"},
    "demo": {
        "segtune",
        *SHARED,
        *REGISTRIES,
        "segtune.config",
        "segtune.engine",
        "segtune.report",
        "segtune.demo",
    },
    "api": {"segtune.errors", *REGISTRIES, "segtune.config", "segtune.engine", "segtune.comparison"},
    "cli": {
        "segtune",
        *SHARED,
        *REGISTRIES,
        "segtune.config",
        "segtune.engine",
        "segtune.comparison",
        "segtune.report",
        "segtune.demo",
        "segtune.cli",
    },
    "__init__": {"segtune.api"},
    "__main__": {"segtune.cli"},
}
"""Package or module -> the modules, with everything below them, that it may import."""
EXACT = {"config": REGISTRIES}
"""Package -> modules that it may import, but nothing below them."""


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Full names of everything that a file imports from segtune, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "segtune":  # `from segtune import api`
                found |= {f"segtune.{a.name}" for a in node.names if (ROOT / f"{a.name}.py").exists()}
                found.discard("segtune")
    return {name for name in found if name == "segtune" or name.startswith("segtune.")}


def is_allowed(name: str, package: str) -> bool:
    if name in EXACT.get(package, set()):
        return True
    below = ALLOWED[package] - EXACT.get(package, set()) - {"segtune"}
    return (name == "segtune" and "segtune" in ALLOWED[package]) or any(
        name == other or name.startswith(f"{other}.") for other in below
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependency_direction(path: Path) -> None:
    package = package_of(path)
    assert package in ALLOWED, f"{package} has no rule here"
    wrong = sorted(name for name in imports_of(path) if not is_allowed(name, package))
    assert not wrong, f"{path.relative_to(ROOT.parent)} must not import {', '.join(wrong)}"


def test_the_rule_sees_a_sibling_import(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from segtune.models.base import SegModel\n    import segtune.engine.fit\n")
    assert imports_of(file) == {"segtune.models.base", "segtune.engine.fit"}
    assert not is_allowed("segtune.models.base", "methods")
    assert not is_allowed("segtune.models", "methods")
    assert not is_allowed("segtune.models.base", "config")
    assert is_allowed("segtune.models", "config")
    assert not is_allowed("segtune.engine.fit", "config")
    assert not is_allowed("segtune.cli", "engine")


def test_every_rule_has_a_package() -> None:
    assert {package_of(path) for path in FILES} == ALLOWED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_readable_in_one_sitting(path: Path) -> None:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= LONGEST, f"{path} has {num_lines} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_say_what_they_are(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, f"{path} has no docstring"


def test_public_names() -> None:
    assert segtune.__all__ == [
        "__version__",
        "adapt",
        "compare",
        "evaluate",
        "fit",
        "load_model",
        "merge",
        "predict",
    ]
    assert dir(segtune) == segtune.__all__
    for name in segtune.__all__:
        assert getattr(segtune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        segtune.trian  # noqa: B018


def test_import_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, segtune, segtune.cli; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_package_is_typed() -> None:
    assert (ROOT / "py.typed").is_file()
