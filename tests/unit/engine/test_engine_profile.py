"""A profile: what it writes, and that it changes no number."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from segtune.engine.fit import fit
from segtune.engine.phases import NOTHING, Phases
from segtune.engine.profile import Profiler
from segtune.models.base import Features
from tests.support import make_config

ADAPTER = Path("adapter") / "adapter.safetensors"


@pytest.fixture(scope="module")
def profiled(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("profiled") / "run"
    fit(make_config(tiny_data, train__steps=9, train__profile_steps=2), run, profile=True)
    return run


def test_the_table_has_every_part(profiled: Path) -> None:
    numbers = json.loads((profiled / "profile" / "profile.json").read_text())
    assert numbers["steps_timed"] == 2
    assert list(numbers["step_seconds"]) == [
        "data wait", "host to device", "encoder forward", "decoder forward", "forward, the rest", "loss",
        "decoder backward", "encoder backward", "optimiser", "the rest",
    ]  # fmt: skip
    assert all(seconds >= 0 for seconds in numbers["step_seconds"].values())
    assert list(numbers["evaluation_seconds"]) == ["read", "network", "metrics"]
    assert numbers["images_evaluated"] == 3 * 2 + 2 + 2, "three validations, and both splits at the end"
    result = json.loads((profiled / "result.json").read_text())
    assert numbers["run_seconds"] == result["seconds"]
    assert sum(numbers["step_seconds"].values()) < result["train_seconds"]
    text = (profiled / "profile" / "profile.md").read_text()
    assert "| training step, mean of 2 | ms | share |" in text and "| encoder backward |" in text


def test_the_trace_shows_the_parts_of_three_steps(profiled: Path) -> None:
    trace = json.loads((profiled / "profile" / "trace.json").read_text())
    names = Counter(event.get("name") for event in trace["traceEvents"])
    assert names["optimiser"] == names["encoder forward"] == names["data wait"] == 3


def test_a_profile_changes_no_number(profiled: Path, tiny_data: Path, tmp_path: Path) -> None:
    config = make_config(tiny_data, train__steps=9, train__profile_steps=2)
    fit(config, tmp_path / "run")
    assert not (tmp_path / "run" / "profile").exists()
    assert (tmp_path / "run" / ADAPTER).read_bytes() == (profiled / ADAPTER).read_bytes()


class Slow(nn.Module):
    """Moves a clock: by 1 in the encoder and 2 in the decoder, by 10 and 20 on the way back."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.clock = clock

    def spend(self, tensor: torch.Tensor, forward: float, backward: float) -> torch.Tensor:
        self.clock[0] += forward
        # the hook runs when the gradient reaches the tensor, before that of what it was made from
        tensor.register_hook(lambda gradient: self.clock.__setitem__(0, self.clock[0] + backward))
        return tensor

    def encode(self, x: torch.Tensor) -> Features:
        inside = self.spend(x * self.weight, 1, 10)
        return Features(maps=[{"deep": inside * 1}], size=(1, 1), padded=(1, 1))

    def decode(self, features: Features) -> torch.Tensor:
        return self.spend(features.maps[0]["deep"] * 2, 2, 20)


def test_forward_and_backward_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(Profiler, "_now", lambda self: clock[0])
    model = Slow(clock)
    profiler = Profiler(model, torch.device("cpu"), 1, tmp_path)
    for _ in range(4):
        with profiler("forward, the rest"):
            output = model.decode(model.encode(torch.ones(1)))
            clock[0] += 5
        with profiler("decoder backward"):
            output.sum().backward()
        profiler.step_done(38.0)
    profiler.close()
    assert "encode" not in vars(model), "the model has its own methods back"
    assert profiler.seconds == {
        "encoder forward": 1,
        "decoder forward": 2,
        "forward, the rest": 5,
        "decoder backward": 20,
        "encoder backward": 10,
    }
    assert (profiler.num_timed, profiler.step_seconds) == (1, 38.0)
    assert profiler.advice() is not None, "the trace is not complete"


def test_without_a_profile_nothing_is_done() -> None:
    assert Phases()("loss") is NOTHING
