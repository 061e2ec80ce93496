"""One tiny run that many tests look at; they never change it."""

from __future__ import annotations

from pathlib import Path

import pytest

from segtune.engine.fit import fit
from tests.support import make_config, make_data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run whose base's running statistics are frozen and whose norms are trained along."""
    run = tmp_path_factory.mktemp("runs") / "lora"
    config = make_config(tiny_data, method="lora+norm", optim__learning_rate=0.02, method__statistics="train")
    fit(config, run)
    return run
