"""Averages of tensors, training without validation, and what a validation writes down."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from segtune.data.base import Sample
from segtune.engine.average import MovingAverage, average_tensors, moving_norms, refresh_statistics
from segtune.engine.checkpoint import Progress, load_checkpoint
from segtune.engine.fit import fit
from segtune.engine.folder import RunFolder
from segtune.engine.kept import averaged_steps, delete_others, rank_validation
from segtune.engine.validation import Validator, evenly
from segtune.errors import UsageError
from tests.support import CLASS_NAMES, log_lines, make_config

ADAPTER = Path("adapter") / "adapter.safetensors"

# --- the arithmetic ---------------------------------------------------------------------------


def test_the_moving_average_follows_its_formula() -> None:
    weight, count = torch.zeros(3), torch.tensor(0)
    average = MovingAverage({"weight": weight, "count": count}, 0.5)
    expected = 0.0
    for step in range(1, 12):
        weight.fill_(float(step))
        count.fill_(step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert torch.allclose(average.tensors["weight"], torch.full((3,), expected))
    assert average.tensors["count"] == 11, "what has no fractions is copied"
    with pytest.raises(KeyboardInterrupt), average.in_place():
        assert torch.equal(weight, average.tensors["weight"])
        raise KeyboardInterrupt
    assert torch.equal(weight, torch.full((3,), 11.0)), "training goes on with its own tensors"


def test_the_average_of_equal_tensors_is_that_tensor() -> None:
    state = {"a": torch.rand(50), "n": torch.tensor(7)}
    assert torch.equal(average_tensors([state] * 3)["a"], state["a"])
    other = {"a": torch.rand(50), "n": torch.tensor(1)}
    mean = average_tensors([state, other])
    assert torch.allclose(mean["a"], (state["a"] + other["a"]) / 2)
    assert mean["n"] == 7 and mean["a"].dtype == torch.float32


def test_statistics_are_the_mean_over_batches() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    model[2].train = lambda mode=True: model[2]  # frozen
    model[2].training = False
    norms = moving_norms(model)
    assert norms == [model[1]]
    batches = [torch.rand(3, 2, 4, 4) for _ in range(5)]
    refresh_statistics(model, norms, (model(batch) for batch in batches))
    assert torch.allclose(model[1].running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    assert model[1].momentum == 0.1 and not model[1].training
    assert torch.equal(model[2].running_mean, torch.zeros(2))


def test_the_best_are_ranked_and_files_outlive_the_checkpoint(tmp_path: Path) -> None:
    folder, progress = RunFolder(tmp_path), Progress()
    folder.last.parent.mkdir()
    kept = []
    for step, score in enumerate([0.3, -float("inf"), 0.5, 0.5, 0.1, 0.4], start=1):
        progress.step = step
        kept.append(rank_validation(progress, score, 3))
        folder.kept(step).touch()
    assert kept == [True, True, True, True, False, True]
    assert averaged_steps(progress) == [3, 4, 6], "the earlier of two equal ones is the better one"
    assert folder.kept(1).exists()
    delete_others(folder, progress)
    assert {path.name for path in folder.last.parent.iterdir()} == {
        f"step-{n}.safetensors" for n in (3, 4, 6)
    }
    lone = Progress(kept=[{"step": 2, "score": -float("inf")}])
    assert averaged_steps(lone) == [2]


def test_images_are_chosen_evenly() -> None:
    samples = [
        Sample(name=f"s{number}", image=Path(f"{number}.png"), mask=None, split="train")
        for number in range(10)
    ]
    assert [sample.name for sample in evenly(samples, 3)] == ["s0", "s3", "s6"]
    assert evenly(samples, "all") == evenly(samples, 99) == samples


# --- runs -------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "method__statistics": "train",
    "optim__learning_rate": 0.01,
    "train__steps": 9,
    "train__batch_size": 4,
    "train__average_best": 3,
    "train__ema": 0.9,
    "train__score_train": 3,
}


@pytest.fixture(scope="module")
def averaged(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("averaged") / "run"
    fit(make_config(tiny_data, **SETTINGS), run)
    return run


def test_the_adapter_is_the_average_of_the_best(averaged: Path) -> None:
    result = json.loads((averaged / "result.json").read_text())
    steps = result["average"]["steps"]
    best = sorted(log_lines(averaged, "val"), key=lambda line: (-line["miou"], line["step"]))[:3]
    assert steps == [line["step"] for line in best]
    assert result["average"]["statistics_batches"] == 2
    states = [load_file(averaged / "checkpoints" / f"step-{step}.safetensors") for step in steps]
    adapter = load_file(averaged / ADAPTER)
    for name, tensor in average_tensors(states).items():
        moved = "running_" in name or name.endswith("num_batches_tracked")
        assert torch.equal(adapter[name], tensor) or moved, name
    assert any(not torch.equal(adapter[n], average_tensors(states)[n]) for n in adapter if "running_" in n)
    single = result["average"]["best_single"]
    assert single["step"] == result["best_step"] == steps[0]
    assert single["val"]["miou"] == pytest.approx(best[0]["miou"])
    assert "miou" in single["test"]
    assert {"start_up", "training", "validation", "checkpoints", "adapter", "final_scores"} == result[
        "seconds"
    ].keys()


def test_the_moving_average_is_what_is_scored(averaged: Path, tiny_data: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(averaged / "checkpoints" / "last.pt")
    assert checkpoint.average is not None
    assert any(not torch.equal(checkpoint.tensors[n], t) for n, t in checkpoint.average.items())
    plain = make_config(tiny_data, **{**SETTINGS, "train__ema": None})
    fit(plain, tmp_path / "plain")
    with_average, without = log_lines(averaged, "train"), log_lines(tmp_path / "plain", "train")
    assert [line["loss"] for line in with_average] == [line["loss"] for line in without]
    scores = [
        [line["cross_entropy"] for line in log_lines(run, "val")] for run in (averaged, tmp_path / "plain")
    ]
    assert scores[0] != scores[1]


def test_resuming_is_bit_identical(
    averaged: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped behind a validation whose checkpoint was not written any more."""
    run = tmp_path / "run"
    validate, calls = Validator.run, []

    def stop(self: Validator, *arguments: Any) -> None:
        validate(self, *arguments)
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Validator, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(make_config(tiny_data, **SETTINGS), run)
    fit(make_config(tiny_data, **SETTINGS), run, resume=True)
    assert (run / ADAPTER).read_bytes() == (averaged / ADAPTER).read_bytes()
    first, second = (json.loads((r / "result.json").read_text()) for r in (run, averaged))
    assert first["average"] == second["average"]


def test_a_validation_writes_scores_of_classes_and_of_training_images(averaged: Path) -> None:
    lines = log_lines(averaged, "val")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 9]
    for line in lines:
        of_classes = [line[f"iou/{name}"] for name in CLASS_NAMES]
        assert line["miou"] == pytest.approx(sum(s for s in of_classes if s is not None) / len(of_classes))
        assert 0 <= line["train_miou"] <= 1 and line["train_cross_entropy"] > 0
    table = list(csv.DictReader((averaged / "metrics.csv").read_text().splitlines()))
    assert float(table[-1]["iou/square"]) == lines[-1]["iou/square"]
    assert float(table[-1]["train_miou"]) == lines[-1]["train_miou"]


def test_training_on_all_but_the_test_images(tiny_data: Path, tmp_path: Path) -> None:
    config = make_config(tiny_data, data__train_on="train+val", train__epochs=2, train__score_train="all")
    result = fit(config, tmp_path / "run").result
    assert result["splits"] == {"train": 10, "test": 2}
    assert result["steps"] == result["best_step"] == 10
    assert result["val"] is None and result["test"]["num_images"] == 2
    assert all("train_miou" in line and "miou" not in line for line in log_lines(tmp_path / "run", "val"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == [
        "step-10.safetensors"
    ]
    for setting in ("train__early_stop", "train__average_best"):
        refused = make_config(tiny_data, data__train_on="train+val", **{setting: 3})
        with pytest.raises(UsageError, match=r"train\+val trains on them") as caught:
            fit(refused, tmp_path / "refused")
        assert "train.steps" in str(caught.value.hint)
        assert not (tmp_path / "refused").exists()
