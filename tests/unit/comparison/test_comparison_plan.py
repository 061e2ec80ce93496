"""From settings to cells."""

from __future__ import annotations

from typing import Any

import pytest

from segtune.comparison.plan import Plan, make_plan
from segtune.config.layers import Layer, nest
from segtune.errors import SettingsError, UnknownNameError, UsageError


def plan_of(compare: dict[str, Any], **settings: Any) -> Plan:
    given = {key.replace("__", "."): value for key, value in settings.items()}
    values = nest({"model": "unet", **given}.items(), "--set")
    return make_plan([values, Layer("sweep.yaml", {"compare": compare})])


def test_axes_multiply_where_a_method_has_them() -> None:
    plan = plan_of({"methods": ["head", "lora", "full"], "ranks": [2, 8], "placements": ["all", "last-1"]})
    assert [row.label for row in plan.rows] == [
        "head",
        "lora rank=2",
        "lora rank=2 last-1",
        "lora rank=8",
        "lora rank=8 last-1",
        "full",
    ]


def test_every_row_runs_once_for_each_seed_and_fold() -> None:
    plan = plan_of({"methods": ["head", "lora"], "seeds": 2, "folds": 3}, train__seed=5)
    cells = plan.runs({})
    assert len(cells) == 2 * 2 * 3
    assert {cell.config.train.seed for cell in cells} == {5, 6}
    assert {cell.config.data.fold for cell in cells} == {0, 1, 2}
    assert {cell.config.data.folds for cell in cells} == {3}
    assert len({cell.name for cell in cells}) == len(cells)


def test_settings_hold_for_the_methods_that_have_them() -> None:
    plan = plan_of({"methods": ["head", "lora", "adapter"]}, method__rank=3, method__width=7)
    configs = {cell.row.label: cell.config for cell in plan.runs({})}
    assert configs["lora"].method_parts["lora"].rank == 3  # type: ignore[attr-defined]
    assert configs["adapter"].method_parts["adapter"].width == 7  # type: ignore[attr-defined]


def test_a_setting_that_no_method_has_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SettingsError, match=r"method\.rnk .*did you mean method\.rank"):
        plan_of({"methods": ["head", "lora"]}, method__rnk=3)


def test_a_row_may_have_settings_and_a_label_of_its_own() -> None:
    plan = plan_of(
        {"methods": [{"name": "lora", "rank": 2, "kinds": ["conv"]}, {"name": "lora", "label": "mine"}]}
    )
    assert [row.label for row in plan.rows] == ["lora rank=2 kinds=['conv']", "mine"]


def test_models_are_named_in_the_rows_where_there_are_several() -> None:
    plan = plan_of({"models": ["unet", {"name": "unet", "width": 8, "label": "small"}], "methods": "head"})
    assert [row.label for row in plan.rows] == ["unet head", "small head"]
    assert plan.runs({})[1].config.model_settings.width == 8  # type: ignore[attr-defined]


def test_the_search_tries_every_rate_and_the_runs_take_the_chosen_one() -> None:
    plan = plan_of({"methods": ["head", "lora"], "search_rates": [1e-3, 1e-2], "search_steps": 7})
    trials = plan.trials()
    assert [(t.row.label, t.trial) for t in trials] == [
        ("head", 1e-3),
        ("head", 1e-2),
        ("lora", 1e-3),
        ("lora", 1e-2),
    ]
    assert {t.config.train.steps for t in trials} == {7}
    assert not {t.seed for t in trials} & {c.seed for c in plan.runs({"head": 1e-2, "lora": 1e-3})}
    chosen = {c.row.label: c.config.optim.learning_rate for c in plan.runs({"head": 1e-2, "lora": 1e-3})}
    assert chosen == {"head": 1e-2, "lora": 1e-3}
    assert [c.row.label for c in plan.runs({"head": 1e-2})] == ["head"]


def test_other_settings_are_another_cell() -> None:
    first, second = (plan_of({"methods": "head"}, train__steps=steps).runs({})[0].name for steps in (3, 4))
    assert first != second


def test_no_folder_of_a_cell_looks_like_an_option() -> None:
    [cell] = plan_of({"methods": {"name": "ia3", "label": "(IA)3"}}).runs({})
    assert cell.name.startswith("IA-3-seed0-")


@pytest.mark.parametrize(
    ("compare", "error", "message"),
    [
        ({"methods": ["lorra"]}, UnknownNameError, "no method called 'lorra'"),
        (
            {"method": ["lora"]},
            SettingsError,
            r"compare\.method: no such setting; did you mean compare\.methods",
        ),
        ({"methods": ["head", "head"]}, UsageError, "two rows of the comparison are called 'head'"),
        ({"methods": ["head"], "seeds": 0}, SettingsError, r"compare\.seeds = 0"),
        ({"methods": ["head"], "placements": ["middle"]}, SettingsError, r"compare\.placements = 'middle'"),
        (
            {"methods": ["head"], "learning_rates": [1e-3], "search_rates": [1e-3]},
            SettingsError,
            "give either",
        ),
        ({}, UsageError, "nothing says which method to compare"),
        ({"methods": ["head"], "score": "iou"}, UnknownNameError, "no metric called 'iou'"),
    ],
)
def test_mistakes_are_named(compare: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan_of(compare)
