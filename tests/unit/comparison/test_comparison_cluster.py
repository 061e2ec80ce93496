"""What a user hears where there is no cluster; runs on one are in tests/cli/test_compare.py."""

from __future__ import annotations

import pytest

from segtune.comparison.cluster import run_on_ray
from segtune.comparison.settings import ComparisonSettings
from segtune.errors import SegtuneError

ray = pytest.importorskip("ray", reason="ray has no build for this Python")


@pytest.mark.parametrize(
    ("address", "hint"), [("10.0.0.1:6379", "10.0.0.1:6379 is up"), (None, "--engine local")]
)
def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch, address: str | None, hint: str) -> None:
    def refuse(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because")

    monkeypatch.setattr(ray, "init", refuse)
    if address is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SegtuneError, match=r"timed out during startup\.\n") as raised:
        list(run_on_ray([], ComparisonSettings()))
    assert hint in str(raised.value)
