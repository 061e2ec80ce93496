"""Merging SSF into a file."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from segtune.engine.merge import merge_run
from segtune.errors import MergeError
from segtune.methods import METHODS
from segtune.methods.apply import apply
from segtune.models import MODELS
from segtune.models.build import build_model


def run_with(**settings: object) -> SimpleNamespace:
    """What `merge_run` reads of a run: a tiny U-Net with a trained SSF on it."""
    model_settings = {"depth": 1, "width": 4}
    model = build_model("unet", 2, MODELS.settings("unet")(**model_settings)).eval()
    applied = apply(model, model.sites(), {"ssf": METHODS.settings("ssf")(**settings)}, removable=False)
    for parameter in applied.parameters().values():
        nn.init.uniform_(parameter, 0.5, 1.5)
    description = SimpleNamespace(
        model="unet",
        model_settings=model_settings,
        class_names=("a", "b"),
        method={"ssf": settings},
        quantize="none",
    )
    tunable = SimpleNamespace(model=model, applied=applied)
    return SimpleNamespace(description=description, tunable=tunable)


def test_the_file_loads_back_into_the_network(tmp_path):
    torch.manual_seed(0)
    report = merge_run(run_with(), tmp_path / "merged.safetensors")
    assert (tmp_path / "merged.safetensors").is_file() and report["bytes"] > 0


def test_biases_that_the_network_does_not_have_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(MergeError, match=r"(?s)unet 6 tensors.*shift_without_bias=false"):
        merge_run(run_with(shift_without_bias=True), tmp_path / "merged.safetensors")
    assert not list(tmp_path.iterdir())
