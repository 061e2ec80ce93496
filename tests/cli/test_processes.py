"""One run by two processes: the same numbers as by one, however they are started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from tests.support import TINY, make_data, set_options

SETTINGS = {
    **TINY,
    "model.norm": "group",  # batch norm would see halves of the batch
    "train.batch_size": 4,
    "train.steps": 6,
    "train.validate_every": 1,
    "train.ema": 0.9,
    "train.average_best": 2,
}
MODULE = [sys.executable, "-m", "segtune"]
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    *("-m", "segtune"),
]


def fit(data: Path, out: Path, starter: list[str] = MODULE, **settings: Any) -> dict[str, Any]:
    given = set_options({**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}})
    named = ["--model", "unet", "--method", "lora", "--out", str(out), "--json"]
    words = ["fit", str(data), *named, *map(str, given)]
    done = subprocess.run([*starter, *words], capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    assert json.loads(done.stdout[done.stdout.index("{") :])["test"] == result["test"], "one process prints"
    return result


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes get unequal parts of what is tested on, and one of them nothing to validate on."""
    return make_data(tmp_path_factory.mktemp("processes") / "data", num_val=1, num_test=5)


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fit(images, tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize(
    ("starter", "strategy"),
    [(MODULE, "ddp"), (TORCHRUN, "ddp"), (MODULE, "fsdp")],
    ids=["by itself", "torchrun", "fsdp"],
)
def test_two_processes_score_as_one(
    alone: dict[str, Any], images: Path, tmp_path: Path, starter: list[str], strategy: str, segtune: Command
) -> None:
    run = tmp_path / "run"
    both = fit(images, run, starter, train__devices=2, train__strategy=strategy)
    assert both["processes"] == 2 and alone["processes"] == 1
    for split in ("val", "test"):
        assert both[split]["num_images"] == alone[split]["num_images"]
        assert sorted(both[split]["per_image"]) == sorted(alone[split]["per_image"]), "each image once"
        for name, score in alone[split]["scores"].items():
            assert both[split]["scores"][name] == pytest.approx(score, abs=2e-3), name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 7)), (
        "one process writes"
    )
    done = segtune("evaluate", run, "--json")
    assert done.code == 0, done.err
    assert done.json()["confusion"] == both["test"]["confusion"], "one process scores what two have trained"


def test_a_batch_that_cannot_be_divided_is_refused(images: Path, segtune: Command, tmp_path: Path) -> None:
    given = set_options({**TINY, "train.devices": 2, "train.batch_size": 3})
    words = ["--model", "unet", "--method", "lora", *given]
    done = segtune("fit", images, *words, "--out", tmp_path / "run")
    assert done.code == 2 and "cannot be divided among 2 processes" in done.err
    done = segtune("fit", images, *words)
    assert done.code == 2 and "several processes need the run's folder" in done.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--strategy", "fsdp"], "and there is one"),
        (["--strategy", "fsdp", "--devices", "3"], "cannot be divided among 3 processes"),
        (["--strategy", "fsdp", "--num-nodes", "3"], "cannot be divided among 3 processes"),
        (["--strategy", "zero"], "train.strategy = 'zero' (from --strategy)"),
    ],
)
def test_processes_that_are_refused(
    images: Path, segtune: Command, tmp_path: Path, given: list[str], message: str
) -> None:
    words = ["--model", "unet", "--method", "lora", *set_options(TINY), *given]
    done = segtune("fit", images, *words, "--out", tmp_path / "run")
    assert done.code == 2 and message in done.err
