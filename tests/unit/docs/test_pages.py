"""What the written pages name is there."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from segtune.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
CODE = re.compile(r"^(```.*?^```|(?:\n {4}[^\n]*)+)", re.MULTILINE | re.DOTALL)


@cache
def prose(page):
    """A page without its blocks of code."""
    return CODE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page):
    """What a link to a part of a page may name."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    """Links that stay in the repository: file (empty: the page itself) and anchor."""
    found = re.findall(r"\]\(([^)\s]*)\)", prose(page))
    return [
        link.partition("#")[::2] for link in found if "://" not in link and not link.startswith("mailto:")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for file, anchor in links(page):
        target = (page.parent / file).resolve() if file else page
        if not target.exists():
            wrong.append(file)
        elif DOCS in page.parents and DOCS not in target.parents:
            wrong.append(f"{file}: not a part of the site")
        elif anchor and anchor not in anchors(target):
            wrong.append(f"{file}#{anchor}")
    assert not wrong


def test_the_walk_names_files_that_exist():
    named = set(re.findall(r"`([a-z_/]+\.py)`", (DOCS / "walk.md").read_text(encoding="utf-8")))
    assert len(named) > 30
    assert (
        sorted(name for name in named if not (ROOT / "segtune" / name.removeprefix("segtune/")).is_file())
        == []
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_that_pages_show_exist(page):
    used = re.findall(r"^ *(?:\$ )?segtune ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(used) <= COMMANDS.keys()


def test_the_readme_shows_the_way():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"data", "fit", "predict"} <= set(re.findall(r"^    segtune ([\w-]+)", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tests_that_pages_name_exist(page):
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page.read_text(encoding="utf-8"))
    assert [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text("utf-8")] == []


def test_the_order_of_the_site_names_pages_that_exist():
    named = re.findall(r"^ +- ([\w-]+\.md)$", (DOCS / ".nav.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) > 20
    assert [name for name in named if not (DOCS / name).is_file()] == []
