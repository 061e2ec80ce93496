"""A comparison as a user runs it: interrupted, continued, with a row that fails; on Ray too."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.support import TINY, set_options

SWEEP = """
compare:
  methods:
    - head
    - lora
    - {name: lora, kinds: attention_qkv, label: impossible}
  ranks: [2]
  seeds: 2
"""


def options(tmp_path: Path) -> list[str]:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return ["--model", "unet", "--config", str(tmp_path / "sweep.yaml"), *map(str, set_options(TINY))]


def scores(out: Path) -> dict[str, list[float]]:
    rows = json.loads((out / "compare.json").read_text())["rows"]
    return {row["label"]: row["scores"] for row in rows}


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that was never interrupted."""
    from segtune.cli import run

    out = tmp_path_factory.mktemp("compare") / "out"
    assert run(["compare", str(data), *options(out.parent), "--out", str(out)]) == 0
    return out


def test_every_cell_is_an_ordinary_run_and_a_failed_one_is_a_row(straight: Path, segtune: Command) -> None:
    rows = {row["label"]: row for row in csv.DictReader((straight / "compare.csv").read_text().splitlines())}
    assert set(rows) == {"head", "lora rank=2", "impossible rank=2"}
    assert rows["impossible rank=2"]["mean"] == ""
    assert rows["impossible rank=2"]["failures"].startswith("2 x lora attaches to attention_qkv")
    for label in ("head", "lora rank=2"):
        assert 0 <= float(rows[label]["mean"]) <= 1
        assert float(rows[label]["unmerged_ms"]) > 0 and float(rows[label]["merged_ms"]) > 0
    runs = [path for path in (straight / "runs").iterdir() if path.name.startswith("lora")]
    assert len(runs) == 2
    for run in runs:
        done = segtune("evaluate", run, "--json")
        assert done.code == 0, done.err
        assert done.json()["scores"]["miou"] == pytest.approx(
            json.loads((run / "result.json").read_text())["test"]["scores"]["miou"]
        )
    for name in ("compare.md", "compare.tex"):
        assert "lora rank=2" in (straight / name).read_text()


def test_a_finished_comparison_repeats_no_cell(straight: Path, data: Path, segtune: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in (straight / "runs").rglob("result.json")}
    done = segtune("compare", data, *options(straight.parent), "--out", straight)
    assert done.code == 0, done.err
    assert "4 are done already" in done.err
    assert "Best miou: " in done.out
    assert "impossible rank=2: 2 x lora attaches to attention_qkv" in done.out
    assert before == {path: path.stat().st_mtime_ns for path in (straight / "runs").rglob("result.json")}


def test_a_killed_comparison_goes_on_to_the_same_numbers(straight: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "segtune", "compare", str(data), *options(tmp_path), "--out", str(out)]
    silent = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **silent)  # type: ignore[call-overload]
    deadline = time.monotonic() + 120
    while not list(out.glob("runs/*/config.yaml")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "compare.json").exists()
    subprocess.run(command, check=True, **silent)  # type: ignore[call-overload]
    assert scores(out) == scores(straight)


def test_ray_gives_the_same_numbers(straight: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray has no build for this Python")
    out = tmp_path / "out"
    words = ["compare", str(data), *options(tmp_path), "--out", str(out), "--engine", "ray"]
    done = subprocess.run(
        [sys.executable, "-m", "segtune", *words], capture_output=True, text=True, check=False,
        env={**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert scores(out) == scores(straight)


def test_mistakes_are_answered_before_anything_is_imported(
    segtune: Command, data: Path, tmp_path: Path
) -> None:
    done = segtune("compare", data, "--model", "unet", "--methods", "lorra")
    assert done.code == 2 and "did you mean 'lora'" in done.err
    done = segtune("compare", tmp_path / "nowhere", "--model", "unet", "--methods", "head")
    assert done.code == 2 and "there is no data folder" in done.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    done = segtune("compare", data, "--model", "unet", "--methods", "head", "--out", tmp_path / "full")
    assert done.code == 2 and "not the folder of a comparison" in done.err
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
