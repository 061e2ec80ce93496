"""A run that is killed at any moment and resumed ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segtune.engine import train, validation
from segtune.engine.checkpoint import load_checkpoint
from segtune.engine.fit import fit
from segtune.engine.train import Trainer
from tests.support import TINY, log_lines, make_config, make_data, python_process, set_options, tree_hash

ADAPTER = Path("adapter") / "adapter.safetensors"
SETTINGS: dict[str, Any] = {
    "model.dropout": 0.3,
    "method.dropout": 0.2,
    "method.statistics": "train",
    "train.checkpoint_every": 2,
    "train.steps": 11,
    "optim.learning_rate": 0.01,
    "data.colour": 0.3,
}
TIMED = ("seconds", "wait_seconds", "images_per_second", "peak_process_bytes")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    fit(config(data), run)
    return run


def config(data: Path, **changes: Any) -> Any:
    settings = {key.replace(".", "__"): value for key, value in SETTINGS.items()}
    return make_config(data, method="lora", **{**settings, **changes})


def numbers(run: Path) -> list[dict[str, Any]]:
    """Every logged line without times and memory."""
    return [{k: v for k, v in line.items() if k not in TIMED} for line in log_lines(run)]


def assert_equal_runs(run: Path, other: Path) -> None:
    assert (run / ADAPTER).read_bytes() == (other / ADAPTER).read_bytes()
    assert numbers(run) == numbers(other)
    steps = [line["step"] for line in log_lines(run, "train")]
    assert steps == list(range(1, len(steps) + 1))
    first, second = (json.loads((r / "result.json").read_text()) for r in (run, other))
    for split in ("val", "test"):
        assert first[split]["scores"] == second[split]["scores"]
        assert first[split]["confusion"] == second[split]["confusion"]
    assert (first["steps"], first["best_step"]) == (second["steps"], second["best_step"])
    assert not list(run.rglob(".*")), "nothing half-written stays"


KILLED = """
import os, signal
from segtune.engine.train import Trainer
step = Trainer._step
def kill(self, *arguments):
    if self.progress.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments)
Trainer._step = kill
from segtune.cli import main
main()
"""
"""`segtune`, which dies by SIGKILL, as by the system's hand, before a step."""


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_in_the_middle_of_an_epoch(data: Path, straight: Path, tmp_path: Path, workers: int) -> None:
    run = tmp_path / "run"
    settings = {**TINY, **SETTINGS, "data.workers": workers}
    arguments = ["fit", str(data), "--model", "unet", "--method", "lora", "--out", str(run)]
    killed = python_process("-c", KILLED.format(step=5), *arguments, *set_options(settings))
    _, log = killed.communicate(timeout=500)
    assert killed.returncode == -signal.SIGKILL, log
    assert not (run / "adapter").exists()
    assert load_checkpoint(run / "checkpoints" / "last.pt").progress.step == 4
    resumed = python_process("-m", "segtune", "fit", "--out", str(run), "--resume")
    _, log = resumed.communicate(timeout=500)
    assert resumed.returncode == 0, log
    assert "continuing behind step 4 of 11" in log
    assert_equal_runs(run, straight)


@pytest.mark.parametrize("moments", [[1], [2], [3], [5, 9], [4, 4, 8], [10]])
def test_stopped_at_any_moment(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: list[int]
) -> None:
    run = tmp_path / "run"
    step = Trainer._step
    for number, moment in enumerate(moments):

        def stop(self: Trainer, *arguments: Any, at: int = moment) -> Any:
            if self.progress.step == at:
                raise KeyboardInterrupt
            return step(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", stop)
            with pytest.raises(KeyboardInterrupt):
                fit(config(data), run, resume=number > 0)
    fit(config(data), run, resume=True)
    assert_equal_runs(run, straight)


@pytest.mark.parametrize("stage", ["checkpoint", "validation", "table"])
def test_stopped_while_writing(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Between the writes of one step, whose files then belong to different steps."""
    run = tmp_path / "run"
    calls: list[int] = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        name = {"checkpoint": "save_checkpoint", "validation": "write_tensors"}.get(stage)
        if name is not None:
            module = train if stage == "checkpoint" else validation
            original = getattr(module, name)
            patch.setattr(module, name, lambda *a: (interrupt(), original(*a))[1])
        else:
            from segtune.engine.log import MetricLog

            table = MetricLog.write_table
            patch.setattr(MetricLog, "write_table", lambda *a: (interrupt(), table(*a))[1])
        with pytest.raises(KeyboardInterrupt):
            fit(config(data), run)
    fit(config(data), run, resume=True)
    assert_equal_runs(run, straight)


def test_resuming_a_finished_run_changes_nothing(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(config(data), run)
    before, result = tree_hash(run), json.loads((run / "result.json").read_text())
    fit(config(data), run, resume=True)
    after = tree_hash(run)
    timed = ("tensorboard", "result.json", "resources.csv")
    same = [name for name in before if not name.startswith(timed)]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    again = json.loads((run / "result.json").read_text())
    for key in ("steps", "best_step", "train_seconds", "parameters_total", "adapter_bytes"):
        assert again[key] == result[key]
    assert again["test"]["scores"] == result["test"]["scores"]


def test_one_seed_gives_one_result(data: Path, straight: Path, tmp_path: Path) -> None:
    fit(config(data), tmp_path / "same")
    assert_equal_runs(tmp_path / "same", straight)
    fit(config(data, data__workers=2), tmp_path / "workers")
    assert_equal_runs(tmp_path / "workers", straight)
    fit(config(data, train__seed=1), tmp_path / "other")
    one, other = load_file(straight / ADAPTER), load_file(tmp_path / "other" / ADAPTER)
    changed = [
        name for name in one if one[name].is_floating_point() and not torch.equal(one[name], other[name])
    ]
    assert len(changed) > len(one) / 2


def test_the_global_generator_does_not_matter(data: Path, straight: Path, tmp_path: Path) -> None:
    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))
    fit(config(data), tmp_path / "run")
    assert_equal_runs(tmp_path / "run", straight)
