"""Figures of volumes and ranks, from records written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra report")

from segtune.engine.folder import RunFolder
from segtune.report import figures
from segtune.report.panel import draw_panel
from segtune.report.records import RunRecord
from tests.support import make_config


def record(tmp_path: Path, label: str, method: str = "lora", **settings: Any) -> RunRecord:
    folder = RunFolder(tmp_path / label)
    folder.path.mkdir()
    folder.write_config(make_config(method=method, train__monitor="volume_dice", **settings))
    volumes = {
        "a": {"volume_dice": {"whole": 0.8, "core": None}},
        "b": {"volume_dice": {"whole": 0.6, "core": 0.5}},
    }
    validations = [
        {
            "epoch": epoch,
            "miou": 0.5,
            "cross_entropy": 1 / epoch,
            "iou/road": 0.2 * epoch,
            "iou/pole": None if epoch == 1 else 0.1,
            **({} if epoch == 1 else {"volume_dice": 0.7}),
        }
        for epoch in (1, 2)
    ]
    return RunRecord(
        label=label,
        folder=folder,
        result={"test": {"volumes": volumes}, "method": method},
        steps=[{"step": i, "epoch": 1 + i // 2, "loss": 4.0 - i, "seconds": 1.0} for i in range(4)],
        validations=validations,
        resources={},
    )


def test_each_volume_is_a_point_of_its_region(tmp_path: Path) -> None:
    figure = figures.volume_boxes([record(tmp_path, "one"), record(tmp_path, "two")])
    assert figure is not None
    whole, core = figure.axes
    assert [text.get_text() for text in whole.get_yticklabels()] == ["one", "two"]
    points = [line.get_xdata().tolist() for line in core.lines if line.get_marker() == "o"]
    assert points == [[0.5], [0.5]], "a case without the region is no point"
    assert figures.volume_boxes([]) is None


def test_loss_by_rank_has_a_line_for_each_rank_in_order(tmp_path: Path) -> None:
    runs = [record(tmp_path, f"rank {r}", method__rank=r) for r in (8, 2)]
    runs.append(record(tmp_path, "full", "full"))
    figure = figures.loss_by_rank(runs)
    assert figure is not None
    train, val = figure.axes
    assert [line.get_label() for line in train.lines] == ["rank 2", "rank 8"]
    assert train.lines[0].get_xydata().tolist() == [[1, 3.5], [2, 1.5]]
    assert val.lines[0].get_ydata() == pytest.approx([1, 0.5])
    assert figures.loss_by_rank(runs[1:]) is None, "one rank alone is no comparison"


def test_the_monitored_score_is_drawn_with_gaps(tmp_path: Path) -> None:
    figure = figures.validation_curves([record(tmp_path, "one")])
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "volume_dice"
    drawn = figure.axes[0].lines[0].get_ydata()
    assert np.isnan(drawn[0]) and drawn[1] == 0.7


def test_each_class_is_a_line_over_epochs(tmp_path: Path) -> None:
    runs = [record(tmp_path, "one"), record(tmp_path, "two")]
    figure = figures.class_curves(runs)
    assert figure is not None
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]
    road, pole = figure.axes[1].lines
    assert (road.get_label(), pole.get_label()) == ("road", "pole")
    assert road.get_xydata().tolist() == [[1, 0.2], [2, 0.4]]
    assert np.isnan(pole.get_ydata()[0]) and pole.get_ydata()[1] == 0.1
    del runs[0].validations[0]["iou/pole"]
    assert figures.class_curves(runs) is None, "other classes, no common legend"
    assert figures.class_curves([]) is None


def test_rows_of_a_panel_have_names() -> None:
    grey = [[np.full((8, 8, 3), 90, np.uint8)]] * 2
    plain, named = (np.asarray(draw_panel(["image"], grey, row_names=names)) for names in ([], ["t1", ""]))
    assert plain.shape == named.shape
    changed = (plain != named).any(axis=(1, 2))
    assert changed[:260].any() and not changed[266:].any()
