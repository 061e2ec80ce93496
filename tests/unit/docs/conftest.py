from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Puts the example of a page in place, as the page says; gives its name in the registry."""
    modules = []

    def put(page, registry):
        text = (DOCS / page).read_text(encoding="utf-8")
        source, line = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        [(name, target)] = ast.literal_eval("{" + line + "}").items()
        module = target.partition(":")[0]
        package = importlib.import_module(module.rpartition(".")[0])
        folder = tmp_path / "example"
        folder.mkdir()
        (folder / f"{module.rpartition('.')[2]}.py").write_text(source, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.setattr(registry, "_entries", {name: target, **registry._entries})
        importlib.invalidate_caches()
        modules.append(module)
        return name

    yield put
    for module in modules:
        sys.modules.pop(module, None)
