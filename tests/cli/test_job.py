"""The whole job as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Command
from tests.support import CLASS_NAMES, TINY, set_options, tree_hash

LOGS = ("format folder", "run folder", "estimated memory")


def test_fit_evaluate_predict_merge_and_fit_again(segtune: Command, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    names = ["--model", "unet", "--method", "lora"]
    done = segtune("fit", data, *names, "--out", run, *set_options(TINY))
    assert done.code == 0, done.err
    assert f"run     {run}" in done.out
    assert "mIoU" in done.out
    for line in LOGS:
        assert line in done.err
        assert line not in done.out
    result = json.loads((run / "result.json").read_text())
    before = tree_hash(run)

    for split in ("val", "test"):
        scored = segtune("evaluate", run, "--split", split, "--json")
        assert scored.code == 0, scored.err
        values = scored.json()
        assert values["confusion"] == result[split]["confusion"]
        for name, score in result[split]["scores"].items():
            assert values["scores"][name] == pytest.approx(score, rel=1e-6)
    shown = segtune("evaluate", run)
    assert f"miou {result['test']['scores']['miou']:.4f}" in re.sub(" +", " ", shown.out)
    assert all(name in shown.out for name in CLASS_NAMES)

    made = segtune("predict", run, data / "test" / "images", "--out", tmp_path / "masks")
    assert made.code == 0, made.err
    assert made.out.splitlines() == [str(tmp_path / "masks" / f"scene{n}.png") for n in (10, 11)]
    confusion = np.zeros((3, 3), int)
    for path in map(Path, made.out.splitlines()):
        truth = np.array(Image.open(data / "test" / "masks" / path.name))
        np.add.at(confusion, (truth, np.array(Image.open(path))), 1)
        assert path.with_name(f"{path.stem}_overlay.png").is_file()
    assert confusion.tolist() == result["test"]["confusion"], "predictions are those that were scored"

    merged = tmp_path / "merged.safetensors"
    folded = segtune("merge", run, "--out", merged)
    assert folded.code == 0, folded.err
    assert "parity  merged" in folded.out
    assert "parity  reloaded" in folded.out
    assert tree_hash(run) == before, "nothing that uses a run changes it"

    again = segtune(
        "fit", data, "--model", "unet", "--method", "head", "--out", tmp_path / "second",
        *set_options({**TINY, "model.weights": merged, "train.steps": 1, "optim.learning_rate": 1e-12}),
        *set_options({"method.statistics": "frozen"}),
    )  # fmt: skip
    assert again.code == 0, again.err
    assert "classifier: kept from the file (3 classes)" in again.err
    second = json.loads((tmp_path / "second" / "result.json").read_text())
    assert second["test"]["scores"]["miou"] == pytest.approx(result["test"]["scores"]["miou"], abs=2e-3)


def test_runs_are_numbered_where_no_folder_is_given(segtune: Command, data: Path) -> None:
    for number in (1, 2):
        done = segtune(
            "fit", data, "--model", "unet", "--method", "head", *set_options({**TINY, "train.steps": 1})
        )
        assert done.code == 0, done.err
        assert Path(f"runs/data-unet-head-{number}/result.json").is_file()


def test_settings_from_a_file_with_their_sources(segtune: Command, data: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"model: {{name: unet, depth: 1, width: 4}}\nmethod: lora+norm\ndata: {{path: {data}}}\n"
        "train: {steps: 5, batch_size: 2, precision: 32, accelerator: cpu}\n"
    )
    run = tmp_path / "run"
    over = ["--set", "train.steps=1", "--set", "method.rank=2"]
    done = segtune("fit", "--config", tmp_path / "run.yaml", *over, "--out", run)
    assert done.code == 0, done.err
    assert "train.steps = 1  (--set)" in done.err
    assert "model.depth = 1  (run.yaml)" in done.err
    assert "method.rank = 2  (--set)" in done.err
    assert json.loads((run / "result.json").read_text())["steps"] == 1


def test_resuming_with_the_same_settings_or_none(segtune: Command, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    names = ["--model", "unet", "--method", "lora", "--out", run]
    assert segtune("fit", data, *names, *set_options(TINY)).code == 0
    same = ["--out", run, "--set", "train.steps=3"]
    for arguments in ([data, *names, *set_options(TINY)], ["--out", run], [data, *names], same):
        done = segtune("fit", *arguments, "--resume")
        assert done.code == 0, done.err
    for assignment, message in (
        ("train.steps=9", "train.steps was 3, now 9"),
        ("method.rank=2", "method.rank was 4, now 2"),
    ):
        done = segtune("fit", "--out", run, "--resume", "--set", assignment)
        assert done.code == 2
        assert message in done.err
    done = segtune("fit", "--resume")
    assert done.code == 2
    assert "--out RUN" in done.err


def test_evaluation_with_windows(segtune: Command, finished: Path) -> None:
    done = segtune(
        "evaluate", finished, "--json", "--set", "data.window=32,32", "--set", "data.flip_tta=true"
    )
    assert done.code == 0, done.err
    assert done.json()["settings"]["window"] == [32, 32]
    assert done.json()["settings"]["flip_tta"] is True
