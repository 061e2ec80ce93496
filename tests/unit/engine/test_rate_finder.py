"""The learning-rate finder: its rule on made-up losses, and that a run leaves nothing behind."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from segtune.engine.rate_finder import find_rate, judge
from segtune.engine.step import Stepper
from segtune.errors import UsageError
from segtune.report.rates import write_rates
from tests.support import make_config

RATES = [10 ** (-5 + number / 20) for number in range(100)]
"""1e-5 to about 0.9."""


def valley(lowest: float, noise: float, seed: int, depth: float = 1.0) -> list[float]:
    """Losses that fall from 2 by a depth towards a rate and rise behind it, with noise."""
    draw = random.Random(seed)
    losses = []
    for rate in RATES:
        distance = math.log10(rate / lowest)
        loss = 2 - depth * math.exp(-(distance**2)) if distance < 0 else 2 - depth + 3 * distance**2
        losses.append(loss + draw.gauss(0, noise))
    return losses


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("lowest", [1e-3, 1e-1])
def test_the_suggestion_is_a_tenth_of_the_lowest(lowest: float, noise: float) -> None:
    found = judge(RATES, [valley(lowest, noise, seed) for seed in (0, 1)], [2.0, 2.0])
    assert found.suggestion == pytest.approx(0.1 * lowest, rel=0.8)
    assert "a tenth of" in found.reason and "from 2.0000 at the start" in found.reason


def test_the_noise_is_measured() -> None:
    draw = random.Random(0)
    flat = [[2 + draw.gauss(0, 0.3) for _ in RATES] for _ in range(2)]
    found = judge(RATES, flat, [2.0, 2.0])
    points = 2 * (2 * 6 + 1)
    assert found.standard_error == pytest.approx(0.3 / math.sqrt(points), rel=0.3)
    assert found.suggestion is None and "noise" in found.reason


def test_no_suggestion_where_the_curve_says_nothing() -> None:
    falling = [2 - number / 100 for number in range(100)]
    assert "still falls at" in judge(RATES, [falling], [2.0]).reason
    found = judge(RATES, [[9.0, 99.0]], [2.0])
    assert found.suggestion is None and "--low" in found.reason
    assert found.diverged == RATES[2]


def test_a_ramp_leaves_nothing(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(tiny_data, method="full")
    found = find_rate(config, steps=12, repeats=2, low=1e-5, high=1e-1)
    assert list(tmp_path.iterdir()) == []
    assert len(found.rates) == 12 and found.rates[-1] == pytest.approx(0.1)
    assert found.losses[0] != found.losses[1], "other images"
    again = find_rate(config, steps=12, repeats=1, low=1e-5, high=1e-1)
    assert again.losses[0] == found.losses[0], "the second ramp began with the same tensors as the first"
    written = write_rates(found, tmp_path / "rates", "tiny")
    assert [path.name for path in written] == ["rates.json", "rates.svg", "rates.png"]
    assert json.loads(written[0].read_text())["rates"] == found.rates


def test_a_ramp_ends_where_the_loss_has_risen_too_far(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([2.0, 1.5, 1.0, 1.0, 9.0, 99.0])
    monkeypatch.setattr(Stepper, "__call__", lambda self, *_: (next(losses), 0.0, 2))
    found = find_rate(make_config(tiny_data), steps=10, repeats=1, low=1e-5, high=1e-1)
    assert found.start == 2.0
    assert found.losses == [[1.5, 1.0, 1.0, 9.0, 99.0]]
    assert found.diverged == found.rates[5]


def test_mistakes(tiny_data: Path) -> None:
    with pytest.raises(UsageError, match="are no ramp"):
        find_rate(make_config(tiny_data), low=1.0, high=0.1)
    with pytest.raises(UsageError, match="one process"):
        find_rate(make_config(tiny_data, train__devices=2))
    with pytest.raises(UsageError, match="base trains nothing"):
        find_rate(make_config(tiny_data, method="base"))
