"""A run: what it leaves, and what it does when something goes wrong in the middle."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from segtune.engine.fit import fit
from segtune.engine.run import load_run
from segtune.engine.session import evaluate_run
from segtune.engine.step import Stepper
from segtune.engine.validation import Validator
from segtune.errors import DataError, NoSiteError, SegtuneError, SettingsError, TrainingError, UsageError
from tests.support import log_lines, make_config, make_data


def test_what_a_run_leaves(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = fit(make_config(tiny_data, train__epochs=2, train__batch_size=4), run)
    assert {p.name for p in run.iterdir()} == {
        "config.yaml", "data.json", "metrics.jsonl", "metrics.csv", "tensorboard",
        "checkpoints", "adapter", "result.json", "images_val.csv", "images_test.csv", "resources.csv",
    }  # fmt: skip
    saved = json.loads((run / "result.json").read_text())
    assert saved["steps"] == 4
    assert saved["splits"] == {"train": 8, "val": 2, "test": 2}
    assert saved["test"]["num_images"] == 2
    assert saved["best_step"] in {2, 4}
    assert 0 <= saved["wait_share"] <= 1
    assert saved["commit"] is None or len(saved["commit"]) == 40
    assert result.scores == saved["test"]["scores"]
    steps, validations = log_lines(run, "train"), log_lines(run, "val")
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["epoch"] for line in steps] == [1, 1, 2, 2]
    assert [line["step"] for line in validations] == [2, 4]
    assert sum(1 for line in validations if line["best"]) >= 1
    again = evaluate_run(run, data=None, split="test", settings={})
    assert again.scores == pytest.approx(saved["test"]["scores"], rel=1e-6)
    assert again.confusion == saved["test"]["confusion"]


@pytest.mark.parametrize(
    ("accumulate", "steps", "epochs"), [(1, 12, [4, 8, 12]), (3, 4, [2, 3, 4]), (8, 2, [1, 2])]
)
def test_epochs_are_passes_over_the_data(
    tiny_data: Path, tmp_path: Path, accumulate: int, steps: int, epochs: list[int]
) -> None:
    config = make_config(tiny_data, method="head", train__epochs=3, train__accumulate=accumulate)
    result = fit(config, tmp_path / "run").result
    assert result["steps"] == steps
    assert [line["step"] for line in log_lines(tmp_path / "run", "val")] == epochs


def test_accumulated_batches_are_one_large_batch(tiny_data: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"method": "full", "model__norm": "group", "train__steps": 3, "data__crop": None}
    fit(make_config(tiny_data, train__batch_size=8, **shared), tmp_path / "a")
    fit(make_config(tiny_data, train__batch_size=2, train__accumulate=4, **shared), tmp_path / "b")
    a, b = log_lines(tmp_path / "a", "train"), log_lines(tmp_path / "b", "train")
    # each epoch is one step of the same eight images
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=1e-5)
    assert a[2]["loss"] == pytest.approx(b[2]["loss"], rel=1e-2)


def test_early_stopping_keeps_the_best(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.5, 0.4, math.nan, 0.9])
    evaluate = Validator.evaluate

    def fake(self: Validator, split: str) -> Any:
        result = evaluate(self, split)
        result.scores["miou"] = next(scores, 0.0)
        return result

    monkeypatch.setattr(Validator, "evaluate", fake)
    config = make_config(tiny_data, method="head", train__epochs=9, train__batch_size=8, train__early_stop=2)
    result = fit(config, tmp_path / "run").result
    assert result["stopped_early"]
    assert (result["steps"], result["best_step"]) == (4, 2)


def test_no_number_is_never_the_best(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([math.nan, 0.1, math.nan, 0.05])
    evaluate = Validator.evaluate

    def fake(self: Validator, split: str) -> Any:
        result = evaluate(self, split)
        result.scores["miou"] = next(scores, 0.0)
        return result

    monkeypatch.setattr(Validator, "evaluate", fake)
    config = make_config(tiny_data, method="head", train__epochs=4, train__batch_size=8)
    assert fit(config, tmp_path / "run").result["best_step"] == 2


def test_monitoring_the_loss_wants_it_low(tiny_data: Path, tmp_path: Path) -> None:
    config = make_config(
        tiny_data, method="full", train__epochs=4, train__monitor="cross_entropy", optim__learning_rate=0.05
    )
    result = fit(config, tmp_path / "run").result
    losses = {line["step"]: line["cross_entropy"] for line in log_lines(tmp_path / "run", "val")}
    assert result["best_step"] == min(losses, key=losses.__getitem__)


# --- not a number -----------------------------------------------------------------------------


def break_loss(monkeypatch: pytest.MonkeyPatch, at: int, value: Any) -> None:
    total, calls = Stepper.total_loss, []

    def loss(self: Stepper, output: Any, masks: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) != at:
            return total(self, output, masks)
        if isinstance(value, Exception):
            raise value
        return total(self, output, masks) * value

    monkeypatch.setattr(Stepper, "total_loss", loss)


def test_not_a_number_names_the_images_and_keeps_the_last_state(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    config = make_config(tiny_data, train__steps=6, train__checkpoint_every=2)
    with monkeypatch.context() as patch:
        break_loss(patch, 4, math.nan)
        with pytest.raises(TrainingError, match=r"is nan at step 4, on the images .*scene\d\d") as caught:
            fit(config, run)
    assert str(run / "checkpoints" / "last.pt") in caught.value.message
    assert "learning_rate" in str(caught.value.hint)
    assert [line["step"] for line in log_lines(run, "train")] == [1, 2, 3]
    assert not list(run.rglob(".*"))
    assert fit(config, run, resume=True).result["steps"] == 6
    fit(config, tmp_path / "straight")
    name = Path("adapter") / "adapter.safetensors"
    assert (run / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_an_infinite_gradient_is_noticed_too(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tiny_data, method="full")
    total = Stepper.total_loss

    def loss(self: Stepper, output: Any, masks: Tensor) -> Tensor:
        value = total(self, output, masks)
        value.register_hook(lambda gradient: gradient * math.inf)
        return value

    monkeypatch.setattr(Stepper, "total_loss", loss)
    with pytest.raises(TrainingError, match=r"at step 1, .*no state was kept yet"):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "not one step was done"


# --- out of memory ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes."),
    ],
)
def test_out_of_memory_says_what_to_set(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    break_loss(monkeypatch, 1, error)
    with pytest.raises(TrainingError, match="out of memory on cpu with batches of 2") as caught:
        fit(make_config(tiny_data), tmp_path / "run")
    assert caught.value.hint == "--set train.batch_size=1 --set train.accumulate=2"
    assert not (tmp_path / "run").exists()


def test_out_of_memory_with_one_image(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_loss(monkeypatch, 2, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(TrainingError) as caught:
        fit(make_config(tiny_data, train__batch_size=1), tmp_path / "run")
    assert "data.crop" in str(caught.value.hint)


def test_the_processor_really_says_so() -> None:
    from segtune.engine.failures import is_out_of_memory

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_other_errors_stay_what_they_are(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_loss(monkeypatch, 1, RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        fit(make_config(tiny_data), tmp_path / "run")


# --- refusals leave nothing behind ------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kind", "piece"),
    [
        ({"method__include": "nowhere.*"}, NoSiteError, "include"),
        ({"model__channels": 4}, UsageError, "3 channels"),
        ({"train__precision": "16"}, UsageError, "needs a GPU"),
        ({"train__accelerator": "cuda"}, UsageError, "no CUDA device"),
        ({"train__monitor": "foreground_iou"}, UsageError, "not defined for 3 classes"),
        ({"train__saliency": True}, UsageError, "there are 3 classes"),
        ({"train__monitor": "ber"}, UsageError, "not defined for 3 classes"),
        ({"loss__name": "set_matching"}, UsageError, "unet proposes none for 3 classes"),
        ({"method__train_head": False}, UsageError, "train_head=false"),
        ({"data__val_fraction": 0.5, "data__test_fraction": 0.5}, UsageError, "nothing is left"),
        ({"data__include": "nothing"}, SegtuneError, "include"),
        ({"data__values": {0: 0, 1: 9, 2: 2}}, SegtuneError, "values"),
        (
            {"data__crop": None, "data__scale": "0.8,1.2"},
            UsageError,
            "scale=0.8,1.2: images of different sizes",
        ),
        ({"model__weights": "imagenet"}, UsageError, "no published weights"),
    ],
)
def test_refused_before_anything_is_written(
    tiny_data: Path, tmp_path: Path, settings: dict[str, Any], kind: type[SegtuneError], piece: str
) -> None:
    if settings.get("train__accelerator") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(kind, match=piece) as caught:
        fit(make_config(tiny_data, **settings), tmp_path / "run")
    assert str(caught.value)
    assert not (tmp_path / "run").exists()


def test_mixed_sizes_without_crops(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", sizes=((48, 64), (40, 64)))
    with pytest.raises(UsageError, match="2 different sizes cannot make a batch") as caught:
        fit(make_config(data, data__crop=None), tmp_path / "run")
    assert "data.crop" in str(caught.value.hint)
    assert not (tmp_path / "run").exists()
    fit(make_config(data, data__crop=None, train__batch_size=1), tmp_path / "run")
    fit(make_config(data, data__crop=None, data__resize="32,32"), tmp_path / "run2")


def test_a_failure_of_resuming_keeps_the_run(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(make_config(tiny_data), run)
    (run / "checkpoints" / "last.pt").write_bytes(b"damaged")
    with pytest.raises(SegtuneError, match="cannot be read"):
        fit(make_config(tiny_data), run, resume=True)
    assert (run / "result.json").is_file()


# --- other data than the run's ----------------------------------------------------------------


def test_evaluation_on_other_data(tiny_run: Path, tmp_path: Path) -> None:
    two = make_data(tmp_path / "two", classes=("a", "b", "c", "d"))
    with pytest.raises(DataError, match=r"the data has 4 classes \(a, b, c, d\), the model 3"):
        evaluate_run(tiny_run, data=two, split="test", settings={})
    notes: list[str] = []

    class Notes:
        def note(self, *lines: str) -> None:
            notes.extend(lines)

        def evaluating(self, done: int, total: int) -> None:
            pass

    renamed = make_data(tmp_path / "renamed", classes=("a", "b", "c"))
    evaluate_run(tiny_run, data=renamed, split="test", settings={}, reporter=Notes())  # type: ignore[arg-type]
    assert any("compared by their position" in line for line in notes)


def test_evaluation_of_grey_images(tiny_run: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "grey")
    for file in data.rglob("images/*.png"):
        Image.open(file).convert("L").save(file)
    try:
        evaluate_run(tiny_run, data=data, split="test", settings={})
    except DataError as error:
        assert "1 channels, the model takes 3" in str(error)


def test_evaluation_with_other_settings(tiny_run: Path) -> None:
    plain = evaluate_run(tiny_run, data=None, split="val", settings={})
    windows = evaluate_run(tiny_run, data=None, split="val", settings={"data.window": "32,32"})
    assert plain.settings["window"] == "auto"
    assert windows.settings["window"] == (32, 32)
    with pytest.raises(SettingsError, match=r"only data\.\* settings"):
        evaluate_run(tiny_run, data=None, split="val", settings={"model.depth": 2})
    with pytest.raises(SettingsError, match=r"data\.widnow"):
        evaluate_run(tiny_run, data=None, split="val", settings={"data.widnow": 2})
    with pytest.raises(UsageError, match="which data to use"):
        evaluate_run(tiny_run / "adapter", data=None, split="val", settings={})


def test_moved_data_is_named(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    fit(make_config(data), tmp_path / "run")
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="there is no data at"):
        evaluate_run(tmp_path / "run", data=None, split="test", settings={})
    evaluate_run(tmp_path / "run", data=tmp_path / "elsewhere", split="test", settings={})
    assert load_run(tmp_path / "run").config is not None
