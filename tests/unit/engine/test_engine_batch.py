"""`train.batch_size=auto` becomes a number that fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from segtune.engine import batch
from segtune.engine import fit as fitting
from segtune.engine.batch import batch_size_of_run, largest_batch
from segtune.engine.fit import fit
from segtune.engine.folder import RunFolder
from segtune.engine.intake import take_in
from segtune.engine.reporter import Reporter
from segtune.errors import UsageError
from tests.support import make_config, make_data


@pytest.mark.parametrize(
    ("fixed", "each", "room", "most", "expected"),
    [(10, 5, 100, 64, 18), (10, 5, 1000, 64, 64), (10, 5, 14, 64, 0), (10, 5, 15, 64, 1), (10, 5, 99, 1, 1)],
)
def test_the_largest_that_fits(fixed: int, each: int, room: int, most: int, expected: int) -> None:
    assert largest_batch(lambda count: fixed + count * each, room=room, most=most) == expected


def test_what_grows_faster_than_it_seemed_is_lowered() -> None:
    count = largest_batch(lambda count: 10 + count**2, room=110, most=64)
    assert 1 <= count <= 10


class Notes(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, *lines: str) -> None:
        self.lines += lines


def test_the_number_stands_in_the_runs_settings(tiny_data: Path, tmp_path: Path) -> None:
    config = make_config(tiny_data, method="head", train__batch_size="auto", train__epochs=1)
    notes = Notes()
    result = fit(config, tmp_path / "run", reporter=notes).result
    assert RunFolder(tmp_path / "run").read_config().train.batch_size == 8  # as many as there are
    assert result["steps"] == 1
    assert any("train.batch_size=auto: 8" in line and "training images" in line for line in notes.lines)


def test_memory_decides(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tiny_data, method="full", train__batch_size="auto")
    check = take_in(config, Reporter())
    monkeypatch.setattr(batch, "available_bytes", lambda _: 3 * 2**20)
    choice = batch_size_of_run(config, check)
    assert 1 <= choice.batch_size < 8
    assert "70% of the 0.0 GiB free" in choice.note
    monkeypatch.setattr(batch, "available_bytes", lambda _: 2**10)
    with pytest.raises(UsageError, match="one image of 48x64 pixels needs"):
        batch_size_of_run(config, check)


def test_images_of_several_sizes_are_taken_one_by_one(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", sizes=((48, 64), (32, 40)))
    config = make_config(data, train__batch_size="auto", data__crop=None)
    assert batch_size_of_run(config, take_in(config, Reporter())).batch_size == 1


def test_a_step_that_does_not_fit_is_announced(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "available_bytes", lambda _: 0)
    notes = Notes()
    fit(make_config(tiny_data, train__steps=1), tmp_path / "run", reporter=notes)
    assert any(line.startswith("warning: that is") and "segtune inspect" in line for line in notes.lines)
