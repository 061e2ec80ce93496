"""What is said before a run agrees with what is built and written."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from segtune.config.run import RunConfig
from segtune.data.base import Classes
from segtune.engine.adapter import TENSORS
from segtune.engine.build import build_from_config
from segtune.engine.cost import (
    MemoryEstimate,
    estimate_memory,
    inspect,
    inspect_config,
    memory_advice,
    trainable_table,
)
from segtune.engine.fit import fit
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
    assert (
        values["total"]
        == values["weights"] + values["gradients"] + values["optimizer"] + values["activations"]
    )


def test_activations_are_those_that_autograd_keeps() -> None:
    config = make_config(method="full", model__depth=2, model__norm="group")
    tunable = build_from_config(config, CLASSES)
    tunable.model.train()
    own = {t.data_ptr() for t in (*tunable.model.parameters(), *tunable.model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = torch.nn.functional.cross_entropy(
            tunable.model(torch.rand(2, 3, 64, 64)).logits, torch.zeros(2, 64, 64, dtype=torch.long)
        )
        held = sum(kept.values())
        loss.backward()
    assert estimated(config).activations == pytest.approx(held, rel=0.1)


def test_advice_is_given_where_activations_rule() -> None:
    estimate = MemoryEstimate(
        weights=1, gradients=1, optimizer=1, activations=97, batch_size=8, size=(512, 512), precision="32"
    )
    assert memory_advice("lora", estimate)[0].startswith("activations are 97% of it")
    assert "method=head" in memory_advice("lora", estimate)[1]
    assert len(memory_advice("full", estimate)) == 1
    heavy = MemoryEstimate(
        weights=90, gradients=1, optimizer=1, activations=8, batch_size=8, size=(512, 512), precision="32"
    )
    assert memory_advice("lora", heavy) == []


def test_inspection_with_data_takes_classes_and_size_from_it(tiny_data: Path) -> None:
    report, estimate = inspect_config(make_config(), num_classes=None, data=tiny_data)
    assert report["num_classes"] == 3
    assert estimate.size[0] <= 64
    assert estimate.size[1] <= 64
    _, whole = inspect_config(make_config(data__crop=None), num_classes=None, data=tiny_data)
    assert whole.size == (48, 64)
    _, given = inspect_config(make_config(data__crop="32,40"), num_classes=None, data=tiny_data)
    assert given.size == (32, 40)
    _, without = inspect_config(make_config(model__depth=1), num_classes=4, data=None)
    assert without.size == (512, 512)
