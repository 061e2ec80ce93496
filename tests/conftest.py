"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SEGTUNE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder} (set SEGTUNE_DATA)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what tests find out about files apart from what the user's own runs did."""
    before = os.environ.get("SEGTUNE_DATA_CACHE")
    os.environ["SEGTUNE_DATA_CACHE"] = str(tmp_path_factory.mktemp("data-cache"))
    yield
    if before is None:
        del os.environ["SEGTUNE_DATA_CACHE"]
    else:
        os.environ["SEGTUNE_DATA_CACHE"] = before
