"""Scores of volumes in a comparison: means over cases and regions, order, intervals, and too few cases."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtune.comparison.advice import advise
from segtune.comparison.cell import SPEED, CellFolder
from segtune.comparison.plan import Plan, make_plan
from segtune.comparison.results import Comparison, collect
from segtune.comparison.statistics import Draws, score_of
from segtune.comparison.table import legend
from segtune.config.layers import nest
from segtune.engine.case_values import CaseValues
from segtune.engine.folder import RunFolder
from segtune.errors import SettingsError, UnknownNameError
from segtune.metrics.volume_scores import VolumeTally

REGIONS = {"whole": (1, 2), "core": (2,)}


def plan_of(score: str) -> Plan:
    own = {
        "compare.methods": ["head", "lora"],
        "compare.seeds": 2,
        "compare.score": score,
        "model.name": "unet",
    }
    return make_plan([nest(own.items(), "test")])


def volumes(number: int, quality: float, metric: str) -> dict[str, Any]:
    """Scores of cases; the region "core" is absent from the first one."""
    generator = np.random.default_rng(0)
    noise = generator.uniform(-0.02, 0.02, (number, 2))
    return {
        f"case{i}": {
            metric: {"whole": quality + noise[i, 0], "core": None if i == 0 else quality + noise[i, 1]}
        }
        for i in range(number)
    }


def collected(tmp_path: Path, score: str, number: int, qualities: dict[str, float]) -> Comparison:
    plan = plan_of(score)
    cells = [(cell, CellFolder(tmp_path, cell.name)) for cell in plan.runs({})]
    for cell, folder in cells:
        run = RunFolder(folder.run)
        run.path.mkdir(parents=True)
        evaluation = {"volumes": volumes(number, qualities[cell.row.label] + 0.001 * cell.seed, score),
                      "scores": {}}  # fmt: skip
        result = {
            "test": evaluation, "val": None, "data": "d", "versions": {}, "device": "cpu",
            "learning_rate": 1e-3, "train_seconds": 1, "images_per_second": 1, "peak_process_bytes": 1,
        }  # fmt: skip
        run.result.write_text(json.dumps(result))
        (run.path / SPEED).write_text(json.dumps({"unmerged_ms": 1, "merged_ms": None}))
        lines = ["name,group,right_0,right_1,true_0,true_1,predicted_0,predicted_1"]
        lines += [f"case{i},case{i},1,1,1,1,1,1" for i in range(number)]
        run.images("test").write_text("\n".join(lines) + "\n")
    return collect(plan, cells, [], {})


def test_the_mean_is_that_of_the_scores_of_volumes() -> None:
    """Against the tally that a run's scores come from, and a slow count over one draw."""
    generator = np.random.default_rng(1)
    tally = VolumeTally(REGIONS, 1.0, 255)
    for number in range(5):
        mask = generator.integers(0, 2 if number == 3 else 3, (3, 4, 5))
        prediction = np.where(generator.random((3, 4, 5)) < 0.7, mask, 0)
        tally.update(prediction, mask, f"case{number}", (1.0, 1.0, 1.0))
    assert tally.cases["case3"]["volume_dice"]["core"] is None
    values = CaseValues.from_result({"volumes": tally.cases}, "volume_dice", {})
    assert score_of(values, "volume_dice") == pytest.approx(tally.scores()["volume_dice"], rel=1e-12)
    draws = Draws(values.names, None, 100, seed=2)
    scores = draws.scores(values, "volume_dice")
    for number in (0, 50, 99):
        drawn = np.repeat(values.values, draws.weights[number].astype(int), axis=0)
        means = [np.mean(column[~np.isnan(column)]) for column in drawn.T if not np.isnan(column).all()]
        assert scores[number] == pytest.approx(np.mean(means), rel=1e-12)


def test_a_draw_in_which_nothing_counts_has_no_score() -> None:
    values = CaseValues(("a", "b"), (None, None), np.array([[math.nan], [0.5]]))
    assert np.isnan(values.means(np.array([[2.0, 0.0]]))).all()
    assert values.select(["b"]).values.tolist() == [[0.5]]


def test_rows_are_ordered_and_told_apart_by_volumes(tmp_path: Path) -> None:
    found = collected(tmp_path, "volume_dice", 8, {"head": 0.6, "lora": 0.8})
    assert [row.label for row in found.rows] == ["lora", "head"]
    best, second = found.rows
    assert best.standing == "best" and second.standing == "behind"
    assert best.low is not None and best.mean is not None and best.low < best.mean < (best.high or 0)
    assert second.behind is not None and second.behind.value == pytest.approx(0.2)
    assert found.unit == "volume" and found.num_units == 8
    assert "volume_dice on 8 test volumes" in legend(found)[0]
    assert any("bootstrap over 8 volumes" in line for line in legend(found))


def test_less_is_better_for_distances(tmp_path: Path) -> None:
    found = collected(tmp_path, "volume_hd95", 8, {"head": 3.0, "lora": 9.0})
    assert [row.label for row in found.rows] == ["head", "lora"]
    assert found.rows[1].behind is not None and found.rows[1].behind.value == pytest.approx(6.0)
    said = " ".join(advise(found))
    assert "Best volume_hd95: head" in said and "6.0000 higher" in said
    assert "lower is better" in legend(found)[0]


def test_two_volumes_cannot_show_a_difference(tmp_path: Path) -> None:
    found = collected(tmp_path, "volume_dice", 2, {"head": 0.2, "lora": 0.9})
    assert [row.standing for row in found.rows] == ["best", ""]
    assert found.rows[0].low is None and found.rows[1].behind is None
    said = " ".join(advise(found))
    assert "With 2 volumes no difference can be shown" in said
    assert "Every other row is behind" not in said
    assert not any("bootstrap" in line for line in legend(found))


def test_a_run_without_the_score_says_so(tmp_path: Path) -> None:
    found = collected(tmp_path, "volume_dice", 0, {"head": 0.2, "lora": 0.9})
    assert found.rows[0].failures == ["its result has no volume_dice"]


def test_what_may_be_a_score() -> None:
    assert plan_of("volume_hd95").sign == -1 and plan_of("cross_entropy").sign == -1
    assert plan_of("volume_dice").sign == 1
    with pytest.raises(SettingsError, match=r"train\.saliency=true"):
        plan_of("s_measure")
    with pytest.raises(UnknownNameError, match="no metric of volumes called 'volume_dise'"):
        plan_of("volume_dise")
