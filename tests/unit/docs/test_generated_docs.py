from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[3] / "tools" / "generate_docs.py"


def load_tool():
    spec = importlib.util.spec_from_file_location("generate_docs", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_method_pages_are_those_of_the_method_files():
    tool = load_tool()
    committed = {path.name: path.read_text(encoding="utf-8") for path in tool.FOLDER.glob("*.md")}
    assert committed == tool.render(), "run `make docs`"


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


def test_writing_the_pages_needs_no_torch():
    script = f"import runpy, sys; runpy.run_path({str(TOOL)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
