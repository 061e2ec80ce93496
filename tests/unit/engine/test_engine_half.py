"""Frozen weights rounded for a run: the same run, to the last bit, or nothing is rounded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segtune.engine import half
from segtune.engine.build import adapt_model
from segtune.engine.fit import fit
from segtune.engine.half import halve_frozen, halve_if_equal
from segtune.methods import METHODS
from segtune.models import MODELS
from segtune.models.build import build_model
from segtune.models.weights import WeightsReport
from tests.support import make_config


@pytest.fixture(autouse=True)
def small_is_worth_it(monkeypatch):
    monkeypatch.setattr(half, "WORTH", 1)


def tunable(method="head", **settings):
    model = build_model("unet", 3, MODELS.settings("unet")(depth=1, width=4))
    parts = {method: METHODS.settings(method)(**settings)}
    return adapt_model(model, parts, WeightsReport(source="none"), seed=0, removable=False)


def test_a_run_with_rounded_weights_is_the_same_run(tiny_data: Path, tmp_path: Path, monkeypatch):
    config = make_config(tiny_data, method="head", train__precision="bf16")
    adapters, scores = [], []
    for name, worth in (("rounded", 1), ("plain", 2**40)):
        monkeypatch.setattr(half, "WORTH", worth)
        scores.append(fit(config, tmp_path / name).result["test"]["scores"])
        adapters.append(load_file(tmp_path / name / "adapter" / "adapter.safetensors"))
    assert scores[0] == scores[1]
    assert all(torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0] | adapters[1])


def test_what_is_trained_or_computed_with_stays_as_it_is():
    made = tunable("lora", kinds=("conv",), include=("encoder.0.*",))  # in its weight form: a few channels
    changed = {id(parameter) for parameter, _ in halve_frozen(made.applied, "bf16")}
    adapted = {f"{site.name}.weight" for site in made.applied.sites}
    for name, parameter in made.model.named_parameters():
        rounded = id(parameter) in changed
        assert rounded == (parameter.dtype == torch.bfloat16)
        assert rounded != (parameter in made.applied.host.owned or name in adapted or "norm" in name)


def test_nothing_is_rounded_without_autocast_or_gain(monkeypatch):
    made = tunable()
    assert halve_frozen(made.applied, "32") == []
    assert not halve_if_equal(made.model, made.applied, "32")
    monkeypatch.setattr(half, "WORTH", 2**20)
    assert not halve_if_equal(made.model, made.applied, "bf16")


def test_a_network_that_gives_other_numbers_keeps_its_weights(monkeypatch):
    made = tunable()
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    layer = made.model.encoder[0].conv1
    monkeypatch.setattr(layer, "forward", lambda x: torch.nn.functional.conv2d(
        x, layer.weight.float() * 1.001, padding=1
    ))  # fmt: skip
    assert not halve_if_equal(made.model, made.applied, "bf16")
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.model.state_dict().items())
    monkeypatch.undo()
    monkeypatch.setattr(half, "WORTH", 1)
    assert halve_if_equal(made.model, made.applied, "bf16")
