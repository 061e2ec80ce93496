"""Trackers: what they hear, and that none of them can harm a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from segtune.engine.fit import fit
from segtune.engine.reporter import Reporter
from segtune.engine.tracking import Tracking, require_trackers
from segtune.errors import MissingExtraError, SettingsError, UsageError
from segtune.registry import Registry
from segtune.trackers import TRACKERS
from segtune.trackers.base import TrackedRun, Tracker, flatten
from tests.support import CLASS_NAMES, log_lines, make_config


class Notebook(Tracker):
    """Writes down what it is told."""

    package = "json"
    hint = "start the server"
    interval = 0.0
    books: ClassVar[list[Notebook]] = []
    fails_at: ClassVar[str | None] = None

    def __init__(self, run: TrackedRun) -> None:
        self.run = run
        self.identifier = run.identifier or "first"
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed: bool | None = None
        self._may("start")
        self.books.append(self)

    def _may(self, what: str) -> None:
        if what == self.fails_at:
            raise ConnectionError("the server is gone\nand here is a page about it")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._may("log")
        self.lines.append((step, dict(values)))

    def close(self, *, failed: bool) -> None:
        self._may("close")
        self.closed = failed


class Notes(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, *lines: str) -> None:
        self.lines += lines


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch) -> list[Notebook]:
    """The only tracker there is."""
    registry = Registry("tracker", {"notebook": f"{__name__}:Notebook"})
    monkeypatch.setattr("segtune.config.load.TRACKERS", registry)
    monkeypatch.setattr("segtune.engine.tracking.TRACKERS", registry)
    monkeypatch.setattr(Notebook, "books", [])
    monkeypatch.setattr(Notebook, "fails_at", None)
    return Notebook.books


def test_a_tracker_hears_the_whole_run(tiny_data: Path, tmp_path: Path, notebooks: list[Notebook]) -> None:
    config = make_config(tiny_data, train__steps=4, train__trackers="notebook", train__tracker_project="mine")
    result = fit(config, tmp_path / "run").result
    (book,) = notebooks
    assert (book.run.name, book.run.project, book.run.folder) == ("run", "mine", (tmp_path / "run").resolve())
    assert book.run.config["method"]["name"] == "lora" and book.run.first_step == 0
    losses = [(step, values["train/loss"]) for step, values in book.lines if "train/loss" in values]
    assert losses == [(line["step"], line["loss"]) for line in log_lines(tmp_path / "run", "train")]
    scores = [values for _, values in book.lines if "val/miou" in values]
    assert all(f"val/iou/{CLASS_NAMES[0]}" in values for values in scores) and len(scores) == 1
    assert book.lines[-1][1]["result/test/miou"] == result["test"]["scores"]["miou"]
    assert book.lines[-1][1]["result/train_seconds"] == result["train_seconds"]
    assert book.closed is False
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"notebook": "first"}
    fit(config, tmp_path / "run", resume=True)
    assert (notebooks[1].run.first_step, notebooks[1].run.identifier) == (4, "first")


@pytest.mark.parametrize("moment", ["log", "close"])
def test_a_tracker_that_fails_is_left_out(
    tiny_data: Path, tmp_path: Path, notebooks: list[Notebook], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(Notebook, "fails_at", moment)
    notes = Notes()
    config = make_config(tiny_data, method="head", train__trackers="notebook")
    fit(config, tmp_path / "run", reporter=notes)
    warnings = [line for line in notes.lines if line.startswith("warning: the tracker")]
    assert len(warnings) == 1
    assert "notebook failed and is left out" in warnings[0]
    assert "ConnectionError: the server is gone;" in warnings[0]
    assert len(log_lines(tmp_path / "run", "train")) == 3


def test_a_tracker_that_does_not_start_stops_the_run_before_it_begins(
    tiny_data: Path, tmp_path: Path, notebooks: list[Notebook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Notebook, "fails_at", "start")
    with pytest.raises(UsageError, match="does not start: ConnectionError: the server is gone\n") as caught:
        fit(make_config(tiny_data, train__trackers="notebook"), tmp_path / "run")
    assert caught.value.hint == "start the server; or leave notebook out of train.trackers"
    assert not (tmp_path / "run").exists()


def test_steps_that_follow_fast_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    book = Notebook(TrackedRun(name="run", project="p", folder=tmp_path))
    now = [0.0]
    monkeypatch.setattr("segtune.engine.tracking.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Notebook, "interval", 1.0)
    tracking = Tracking({"notebook": book}, Reporter())
    for step in range(1, 9):
        now[0] = step * 0.4
        tracking.log("train", {"step": step, "epoch": 1, "loss": 1.0, "best": True, "odd": float("nan")})
    tracking.log("val", {"step": 8, "miou": 0.5, "name": "x", "iou/none": None})
    assert [step for step, _ in book.lines] == [1, 4, 7, 8]
    assert book.lines[0][1] == {"train/loss": 1.0} and book.lines[-1][1] == {"val/miou": 0.5}
    tracking.close(failed=True)
    assert book.closed is True


def test_mistakes_are_answered(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"train\.trackers: there is no tracker called 'wandbb'.*'wandb'"):
        make_config(tiny_data, train__trackers="tensorboard,wandbb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(MissingExtraError, match="'wandb', which is not installed") as caught:
        require_trackers(["tensorboard", "wandb"])
    assert caught.value.hint == "pip install 'segtune[wandb]'"
    assert flatten({"a": {"b": 1, "c": {}}, "d": 2}) == {"a.b": 1, "a.c": {}, "d": 2}


# --- the tools' own packages, in place of which stand modules that take the same calls --------


class Calls:
    """Stands for an object of another package: every method writes down its call."""

    def __init__(self, name: str, made: list[Any], **attributes: Any) -> None:
        self._name, self._made = name, made
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Calls:
            self._made.append((f"{self._name}.{name}", args, kwargs))
            summary, info = Calls("summary", self._made), SimpleNamespace(run_id="abc")
            return Calls(name, self._made, id="abc", info=info, summary=summary)

        return call


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_each_tool_gets_its_calls(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    module = ModuleType(name)
    module.__getattr__ = Calls(name, made).__getattr__  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, name, module)
    settings = {f"key{number}": number for number in range(150)}
    run = TrackedRun(name="run", project="mine", folder=tmp_path, config={"train": settings})
    tracker = TRACKERS.load(name)(run)
    tracker.log({"train/loss": 1.0, "val/iou/ä b:c(d)": 0.5}, 7)
    tracker.finish({"result/test/miou": 0.6}, 8)
    tracker.close(failed=True)
    text = repr(made)
    assert "mine" in text and str(tmp_path) in text and "'step': 7" in text
    assert "train/loss" in text and "result/test/miou" in text
    if name == "mlflow":
        sent = [args[0] for what, args, _ in made if what == "mlflow.log_params"]
        assert [len(part) for part in sent] == [100, 50]
        assert "val/iou/_ b:c_d_" in text and "'status': 'FAILED'" in text
    else:
        assert "val/iou/ä b:c(d)" in text
    if name != "trackio":
        assert tracker.identifier == "abc"
