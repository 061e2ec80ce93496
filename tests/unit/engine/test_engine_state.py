"""Checkpoints, logs, folders and measurements of a run."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from segtune.engine.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from segtune.engine.folder import RunFolder, require_run
from segtune.engine.log import MetricLog
from segtune.engine.reporter import Reporter
from segtune.engine.resources import ResourceMonitor
from segtune.engine.run import git_commit, versions
from segtune.engine.tracking import Tracking
from segtune.errors import SegtuneError, UsageError
from tests.support import make_config

NOBODY = Tracking({}, Reporter())

# --- checkpoints ------------------------------------------------------------------------------


def test_checkpoints_come_back(tmp_path: Path) -> None:
    progress = Progress(step=7, best_score=-float("inf"), validations=[{"step": 3, "miou": 0.5}])
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    path = tmp_path / "last.pt"
    average = {name: tensor / 2 for name, tensor in layer.state_dict().items()}
    kept = Checkpoint(
        progress=progress,
        tensors=layer.state_dict(),
        optimizer=optimizer.state_dict(),
        scaler={"scale": 2.0},
        average=average,
    )
    save_checkpoint(path, kept)
    back = load_checkpoint(path)
    assert back.progress == progress
    assert all(torch.equal(back.tensors[k], v) for k, v in layer.state_dict().items())
    assert back.average is not None and all(torch.equal(back.average[k], v) for k, v in average.items())
    assert back.scaler == {"scale": 2.0}
    state = optimizer.state_dict()
    assert back.optimizer["param_groups"] == state["param_groups"]
    assert torch.equal(back.optimizer["state"][0]["exp_avg"], state["state"][0]["exp_avg"])


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "evil", "other", "missing"])
def test_damaged_checkpoints(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.pt"
    tensors = {"a": torch.ones(100)}
    save_checkpoint(path, Checkpoint(progress=Progress(step=1), tensors=tensors, optimizer={}, scaler={}))
    content = path.read_bytes()
    if damage == "other":
        torch.save({"progress": {"stp": 1}, "tensors": {}}, path)
    elif damage == "missing":
        path.unlink()
    else:
        new = {
            "truncated": content[:300],
            "empty": b"",
            "text": b"hello",
            "evil": pickle.dumps(Evil(), protocol=2),
        }
        path.write_bytes(new[damage])
    with pytest.raises(SegtuneError, match="cannot be read") as caught:
        load_checkpoint(path)
    assert caught.value.hint is not None
    assert not (tmp_path / "evil").exists()


# --- logs -------------------------------------------------------------------------------------


def test_a_resumed_log_forgets_what_will_be_done_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = MetricLog(folder, 0, NOBODY)
    for step in (1, 2, 3):
        log.write("train", {"step": step, "loss": 1.0 / step})
        if step == 2:
            position = log.num_bytes
    log.close()
    log = MetricLog(folder, position, NOBODY)
    assert log.num_bytes == position
    log.write("train", {"step": 3, "loss": float("nan")})
    after = log.num_bytes
    log.close()
    assert after == folder.metrics.stat().st_size
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[2]["loss"] is None


def test_a_lost_log_starts_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = MetricLog(folder, 1000, NOBODY)
    log.write("train", {"step": 6, "loss": 1.0})
    log.close()
    assert json.loads(folder.metrics.read_text())["step"] == 6


def test_the_table_has_every_column(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = MetricLog(folder, 0, NOBODY)
    log.write_table([])
    assert not folder.table.exists()
    log.write_table([{"step": 1, "miou": 0.5}, {"step": 2, "miou": 0.6, "peak_gpu_bytes": 3}])
    log.close()
    rows = list(csv.DictReader(folder.table.read_text().splitlines()))
    assert rows[0] == {"step": "1", "miou": "0.5", "peak_gpu_bytes": ""}
    assert rows[1]["peak_gpu_bytes"] == "3"


# --- folders ----------------------------------------------------------------------------------


def test_claims(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new").claim(resume=False)
    assert not (tmp_path / "new").exists()
    RunFolder(tmp_path).claim(resume=False)
    with pytest.raises(UsageError, match="nothing to resume"):
        RunFolder(tmp_path).claim(resume=True)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder(file).claim(resume=False)
    with pytest.raises(UsageError, match="is not empty") as caught:
        RunFolder(tmp_path).claim(resume=False)
    assert "--resume" in str(caught.value.hint)


def test_config_is_written_and_read_back(tmp_path: Path) -> None:
    config = make_config(tmp_path, method="lora+norm", method__rank=3)
    folder = RunFolder(tmp_path / "run")
    folder.write_config(config)
    assert folder.read_config() == config
    require_run(folder.path)


@pytest.mark.parametrize("text", ["a: [", "- 1", "model: {name: unett}\nmethod: lora", "model: 3"])
def test_damaged_configs(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError):
        RunFolder(tmp_path).read_config()


# --- measurements -----------------------------------------------------------------------------


def test_monitor_sees_memory_and_keeps_the_peak() -> None:
    with ResourceMonitor(torch.device("cpu"), peak_process_bytes=10, interval=60) as monitor:
        resident = psutil.Process().memory_info().rss
        assert monitor.peak_process_bytes >= 0.8 * resident
    assert monitor.snapshot() == {"peak_process_bytes": monitor.peak_process_bytes}
    with ResourceMonitor(torch.device("cpu"), peak_process_bytes=2**50, interval=60) as monitor:
        pass
    assert monitor.snapshot()["peak_process_bytes"] == 2**50
    assert not monitor._thread.is_alive()


def test_versions() -> None:
    found = versions()
    assert {"segtune", "torch", "torchvision", "numpy", "python", "processor"} == found.keys()
    assert found["torch"] == torch.__version__


def test_commit_is_that_of_the_folder_alone(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_commit(tmp_path) is None
    (tmp_path / ".git" / "refs" / "heads" / "main").write_text("a" * 40 + "\n")
    assert git_commit(tmp_path) == "a" * 40
    (tmp_path / ".git" / "HEAD").write_text("b" * 40)
    assert git_commit(tmp_path) == "b" * 40
    own = tmp_path / ".git" / "worktrees" / "second"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/second\n")
    (own / "commondir").write_text("../..\n")
    (tmp_path / ".git" / "refs" / "heads" / "second").write_text("c" * 40 + "\n")
    (tmp_path / "worktree").mkdir()
    (tmp_path / "worktree" / ".git").write_text(f"gitdir: {own}\n")
    assert git_commit(tmp_path / "worktree") == "c" * 40
    (tmp_path / "inside").mkdir()
    assert git_commit(tmp_path / "inside") is None


def test_progress_is_plain(tmp_path: Path) -> None:
    assert json.dumps(dataclasses.asdict(Progress()))
