"""The table of docs/formats.md has a row for every format, in the order in which they are tried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segtune.data import FORMATS
from segtune.settings import read_docstring

PAGE = Path(__file__).resolve().parents[3] / "docs" / "formats.md"
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


def test_every_format_has_a_row_in_the_order_of_the_registry():
    assert [*ROWS] == [*FORMATS]


@pytest.mark.parametrize("name", FORMATS)
def test_every_setting_of_a_format_is_named(name):
    missing = [key for key in FORMATS.settings(name).model_fields if f"`{key}`" not in ROWS[name]]
    assert missing == []


def test_the_keys_of_the_description_are_those_of_its_file():
    [shown] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    documented = read_docstring("segtune.data.description")
    assert [line for line in shown.splitlines() if line not in documented] == []
