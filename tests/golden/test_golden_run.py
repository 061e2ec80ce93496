"""The losses of small runs, pinned: a change that is meant to change no number changes none of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segtune.engine.fit import fit
from tests.support import log_lines, make_config, make_data

TOLERANCE = 2e-4
"""Relative; processors round sums in different orders."""

RUNS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "full": (
        {"method": "full", "optim__learning_rate": 0.01},
        [1.48554, 1.28909, 1.19301, 1.16535, 1.14881, 1.11874],
    ),
    "lora": (
        {"method": "lora", "optim__learning_rate": 0.02, "method__dropout": 0.1},
        [1.2931, 1.26078, 1.22266, 1.17638, 1.13625, 1.09725],
    ),
    "dice": (
        {
            "method": "lora+norm",
            "loss__name": "dice_cross_entropy",
            "optim__name": "sgd",
            "optim__learning_rate": 0.1,
            "train__accumulate": 2,
            "data__colour": 0.3,
        },
        [2.04666, 2.00265, 1.88897, 1.77519, 1.70862, 1.65684],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_what_they_were(name: str, tmp_path: Path) -> None:
    settings, losses = RUNS[name]
    data = make_data(tmp_path / "data")
    fit(make_config(data, train__steps=6, model__depth=2, **settings), tmp_path / "run")
    got = [line["loss"] for line in log_lines(tmp_path / "run", "train")]
    assert got == pytest.approx(losses, rel=TOLERANCE), [float(f"{value:.6g}") for value in got]
