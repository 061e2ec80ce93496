"""The generated pages are those of the code."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[3] / "tools"


def load_tool(name="generate_docs"):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_of_components_are_those_of_their_files():
    tool = load_tool()
    committed = {p.relative_to(tool.FOLDER).as_posix(): p.read_text(encoding="utf-8") for p in tool.written()}
    assert committed == tool.render(), "run `make docs`"


def test_the_page_of_python_is_that_of_the_docstrings():
    tool = load_tool("generate_python_docs")
    assert tool.TARGET.read_text(encoding="utf-8") == tool.page(), "run `make docs`"


def test_every_component_has_its_place_on_a_page():
    tool = load_tool()
    pages = tool.render()
    for registry, page in (
        (tool.METHODS, "methods/README.md"),
        (tool.MODELS, "models/README.md"),
        (tool.LOSSES, "losses.md"),
        (tool.METRICS, "metrics.md"),
        (tool.SALIENCY, "metrics.md"),
    ):
        assert [name for name in registry if f"`{name}" not in pages[page]] == []


def test_every_method_documents_itself_under_the_fixed_headings():
    tool = load_tool()
    for name in tool.METHODS:
        headings = [heading for heading, text in tool._sections(tool.METHODS.documentation(name)) if text]
        assert headings[:4] == [
            "What it changes",
            "Where it attaches",
            "Parameters",
            "When to use it",
        ], name
        assert headings[4:] in ([], ["Source"]), name


@pytest.mark.parametrize("name", ["generate_docs", "generate_python_docs"])
def test_writing_the_pages_needs_no_torch(name):
    script = (
        f"import runpy, sys; runpy.run_path({str(TOOLS / name)!r} + '.py'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
