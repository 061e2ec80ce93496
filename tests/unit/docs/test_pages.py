"""What the written pages name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segtune.cli import COMMANDS
from segtune.data import FORMATS
from segtune.losses import LOSSES
from segtune.methods import METHODS
from segtune.metrics import METRICS
from segtune.models import MODELS

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_walk_names_files_that_exist():
    named = set(re.findall(r"`([a-z_/]+\.py)`", (ROOT / "docs" / "walk.md").read_text(encoding="utf-8")))
    assert len(named) > 30
    assert (
        sorted(name for name in named if not (ROOT / "segtune" / name.removeprefix("segtune/")).is_file())
        == []
    )


def test_the_readme_names_every_component():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for registry in (MODELS, METHODS, LOSSES, METRICS, FORMATS):
        assert [name for name in registry if f"`{name}" not in text] == [], registry.kind


def test_the_readme_uses_commands_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"^    segtune (\w+)", text, re.MULTILINE))
    assert {"data", "fit", "predict"} <= used <= COMMANDS.keys()
