"""The tables of the documentation say what the files in benchmarks/ say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["generate_performance", "generate_results", "generate_tables"])
def test_tables_are_up_to_date(name):
    tool = REPOSITORY / "tools" / f"{name}.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
