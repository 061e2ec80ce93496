"""What is said before a run agrees with what is built and written."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from segtune.config.run import RunConfig
from segtune.data.base import Classes
from segtune.engine.adapter import TENSORS
from segtune.engine.advice import alternatives, compared_with_full, describe
from segtune.engine.build import build_from_config, build_loss, place
from segtune.engine.cost import (
    MemoryEstimate,
    estimate_memory,
    trainable_table,
)
from segtune.engine.fit import fit
from segtune.engine.inspect import inspect, inspect_config
from segtune.engine.memory import LiveBytes, run_step
from segtune.models.chunked_attention import STANDS_FOR, chunked_attention
from tests.support import CLASS_NAMES, COLOURS, make_config

CLASSES = Classes(names=CLASS_NAMES, palette=COLOURS)
METHODS = ["full", "scratch", "head", "bitfit", "norm", "lora", "lora+norm"]


def inspected(config: RunConfig) -> dict[str, Any]:
    return inspect(
        model=config.model,
        model_settings=config.model_settings,
        num_classes=3,
        parts=config.method_parts,
    )


def estimated(config: RunConfig, **changes: Any) -> MemoryEstimate:
    values: dict[str, Any] = {
        "model": config.model,
        "model_settings": config.model_settings,
        "num_classes": 3,
        "parts": config.method_parts,
        "batch_size": 2,
        "size": (64, 64),
        "precision": "32",
    }
    return estimate_memory(**{**values, **changes})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["unet", "lraspp_mobilenet_v3_large"])
def test_counts_equal_a_real_build(model: str, method: str) -> None:
    sizes = {} if model == "unet" else {"model__depth": None, "model__width": None}
    config = make_config(method=method) if model == "unet" else _other(model, method)
    assert sizes is not None
    tunable = build_from_config(config, CLASSES)
    report = inspected(config)
    counts = tunable.applied.counts()
    trained = [p for p in tunable.model.parameters() if p.requires_grad]
    assert report["parameters_total"] == counts["total"]
    assert report["parameters_trainable"] == sum(p.numel() for p in trained) == counts["trainable"]
    adapter = report["parameters_by_role"]["adapter"]
    assert report["parameters_total"] + adapter == sum(p.numel() for p in tunable.model.parameters())
    assert sum(report["parameters_by_role"].values()) == report["parameters_trainable"]
    assert [site["name"] for site in report["sites"]] == [site.name for site in tunable.model.sites()]
    assert {s["name"] for s in report["sites"] if s["used"]} == {s.name for s in tunable.applied.sites}
    assert report["mergeable"]


def _other(model: str, method: str) -> RunConfig:
    from segtune.config.layers import nest
    from segtune.config.load import load_config

    return load_config([nest({"model": model, "model.weights": "none", "method": method}.items(), "test")])


@pytest.mark.parametrize("method", METHODS)
def test_adapter_bytes_are_those_of_the_file(tiny_data: Path, tmp_path: Path, method: str) -> None:
    config = make_config(tiny_data, method=method, model__depth=2, train__steps=1)
    result = fit(config, tmp_path / "run").result
    written = (tmp_path / "run" / "adapter" / TENSORS).stat().st_size
    assert result["adapter_bytes"] == written
    assert abs(inspected(config)["adapter_bytes"] - written) <= 0.01 * written + 256
    assert result["parameters_total"] == inspected(config)["parameters_total"]
    assert result["parameters_trainable"] == inspected(config)["parameters_trainable"]


def test_the_table_adds_up() -> None:
    tunable = build_from_config(make_config(method="lora", model__depth=2), CLASSES)
    rows = trainable_table(tunable.applied)
    assert sum(total for _, total, _ in rows) == sum(p.numel() for p in tunable.model.parameters())
    assert sum(part for _, _, part in rows) == tunable.applied.counts()["trainable"]
    assert len({name for name, _, _ in rows}) == len(rows)


def test_estimates_grow_with_batch_and_size() -> None:
    config = make_config(method="full", model__depth=2)
    totals = [estimated(config, batch_size=n).total for n in (1, 2, 4, 8)]
    assert all(a < b for a, b in itertools.pairwise(totals))
    one, two = estimated(config, batch_size=2), estimated(config, batch_size=4)
    assert two.activations == pytest.approx(2 * one.activations, rel=0.02)
    assert estimated(config, size=(128, 64)).activations == pytest.approx(2 * one.activations, rel=0.02)
    assert (one.weights, one.gradients, one.optimizer) == (two.weights, two.gradients, two.optimizer)


def test_parts_of_an_estimate() -> None:
    full, head = make_config(method="full", model__depth=2), make_config(method="head", model__depth=2)
    weights = sum(p.numel() * 4 for p in build_from_config(full, CLASSES).model.parameters())
    assert estimated(full).gradients == weights
    assert estimated(full).optimizer == 2 * weights
    assert estimated(full, optimizer="sgd").optimizer == weights
    assert estimated(full).weights >= weights
    assert estimated(head).activations < 0.7 * estimated(full).activations
    assert estimated(full, precision="bf16").activations < 0.8 * estimated(full).activations
    values = estimated(full).to_dict()
    parts = ("weights", "gradients", "optimizer", "activations", "allocator")
    assert values["total"] == sum(values[part] for part in parts)
    assert estimated(full, on_gpu=True).total == values["total"] - values["allocator"]
    assert replace(estimated(full), program=100).process == values["total"] + 100


@pytest.mark.parametrize("method", ["full", "lora", "head"])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_step_without_data_holds_what_a_real_one_does(method: str, precision: str) -> None:
    config = make_config(method=method, model__depth=2)
    tunable = build_from_config(config, CLASSES)
    place(tunable.model, torch.device("cpu")).train()
    loss = build_loss(config, CLASSES, tunable.model)
    shape: dict[str, Any] = {"batch_size": 2, "size": (64, 64), "precision": precision}
    real = run_step(tunable.model, tunable.applied, **shape, loss=loss).peak
    found = estimated(config, **shape, loss=loss)
    assert real > 2**20
    assert found.activations + found.gradients == pytest.approx(real, rel=0.01)


def test_what_is_read_from_a_cache_is_held_as_a_batch() -> None:
    config = make_config(method="head", model__depth=2)
    kept = estimated(config, num_sections=3, batch_size=4)
    assert kept.activations >= 4 * 64 * 64 * 4 * (4 + 8 / 4 + 16 / 16)  # the maps of three levels
    assert kept.activations < 2 * estimated(config, batch_size=4).activations


def test_gradients_of_earlier_batches_count() -> None:
    config = make_config(method="full", model__depth=2, model__width=16)
    one, two = estimated(config), estimated(config, accumulate=2)
    assert two.total > one.total + 0.5 * one.gradients


def test_advice_says_what_saves_memory_and_how_much() -> None:
    config = make_config(method="lora", model__depth=2, data__crop="auto")
    estimate = estimated(config, batch_size=4)
    found = alternatives(config, estimate, 3)
    totals = {each.change: each.total for each in found}
    assert list(totals.values()) == sorted(totals.values())
    assert totals["method=head"] == estimated(make_config(method="head", model__depth=2), batch_size=4).total
    assert {
        "train.precision=bf16",
        "train.batch_size=2 train.accumulate=2",
        "data.crop=32,32",
    } <= totals.keys()
    assert all(total < 0.95 * estimate.total for total in totals.values())
    line = next(line for line in describe(found, estimate) if line.startswith("data.crop=32,32"))
    assert line.endswith("%), work -75%")


@pytest.mark.parametrize("method", ["head", "lora"])
def test_a_cache_of_what_is_frozen_saves_work_where_there_is_a_prefix(method: str) -> None:
    config = make_config(method=method, model__depth=2)
    estimate = estimated(config)
    found = {each.change: each.work for each in alternatives(config, estimate, 3)}
    assert ("train.cache=prefix" in found) == (method == "head")
    assert found["train.cache=prefix" if method == "head" else "method=head train.cache=prefix"] < 0.9
    cached = replace(config, train=config.train.model_copy(update={"cache": "prefix"}))
    assert not any("cache" in each.change for each in alternatives(cached, estimate, 3))


def test_operations_are_those_of_the_products() -> None:
    config = make_config(method="scratch", model__depth=1, model__width=4)
    one, two = estimated(config, batch_size=1), estimated(config, batch_size=2)
    assert (
        two.operations
        == 2 * one.operations
        == 2 * estimated(config, batch_size=1, precision="bf16").operations
    )
    assert estimated(config, batch_size=1, accumulate=3).operations == 3 * one.operations


def test_an_adapter_that_saves_little_is_compared_with_full_tuning() -> None:
    lora, head = make_config(method="lora"), make_config(method="head")
    line = compared_with_full(lora, estimated(lora, size=(128, 128)), 3)
    assert line is not None
    assert line.startswith("method=full would need")
    assert compared_with_full(head, estimated(head, size=(128, 128)), 3) is None
    assert compared_with_full(make_config(method="full"), estimated(lora), 3) is None


def test_inspection_with_data_takes_classes_and_size_from_it(tiny_data: Path) -> None:
    report, estimate = inspect_config(make_config(), num_classes=None, data=tiny_data)
    assert report["num_classes"] == 3
    assert estimate.size[0] <= 64
    assert estimate.size[1] <= 64
    _, whole = inspect_config(make_config(data__crop=None), num_classes=None, data=tiny_data)
    assert whole.size == (48, 64)
    _, given = inspect_config(make_config(data__crop="32,40"), num_classes=None, data=tiny_data)
    assert given.size == (32, 40)
    report, most = inspect_config(
        make_config(train__batch_size="auto", train__accelerator="cpu"), num_classes=None, data=tiny_data
    )
    assert most.batch_size == 8
    assert report["batch_size_auto"].startswith("train.batch_size=auto: 8 ")
    _, without = inspect_config(make_config(model__depth=1), num_classes=4, data=None)
    assert without.size == (512, 512)


def test_attention_in_chunks_is_traced_in_two_of_them() -> None:
    """What a step takes is the same as with all six, and the trace is as short as the number of blocks."""

    def attend() -> LiveBytes:
        shapes = (3, 1024, 8), (3, 1024, 8), (3, 1024, 8), (3, 1024, 32), (3, 1024, 32)
        with LiveBytes() as counted:
            tensors = [torch.zeros(shape, requires_grad=True) for shape in shapes]
            chunked_attention(*tensors).sum().backward()
        return counted

    real = attend()
    with FakeTensorMode():
        traced = attend()
    assert (traced.operations, traced.peak) == (real.operations, real.peak)
    assert STANDS_FOR.get() == 1
