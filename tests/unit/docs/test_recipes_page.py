"""The page of recipes says what the recipes say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

TOOL = Path(__file__).resolve().parents[3] / "tools" / "generate_recipes.py"


def test_the_page_of_recipes_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate_recipes", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.TARGET.read_text(encoding="utf-8") == tool.page(), "run `make docs`"
