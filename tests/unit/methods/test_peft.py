"""What is particular to the tuners of the library peft; the contracts cover the rest."""

from __future__ import annotations

import pytest
import torch

from segtune.errors import UnknownNameError, UsageError
from segtune.methods.base import Role
from tests.contracts.table import logits, make_applied, make_model

pytest.importorskip("peft")

MISTAKES = {
    "unknown tuner": ("peft:lohaa", {}, UnknownNameError, "did you mean 'peft:loha'"),
    "prompt learning": ("peft:prompt_tuning", {}, UsageError, "changes no layer"),
    "adalora": ("peft:adalora", {}, UsageError, "between steps"),
    "unknown setting": ("peft:loha", {"config": {"rr": 3}}, UsageError, "did you mean 'r'"),
    "a field of ours": ("peft:lora", {"config": {"bias": "all"}}, UsageError, "method.train_bias"),
    "a wrong value": ("peft:loha", {"config": {"r": "eight"}}, UsageError, "cannot be put"),
    "a start that overwrites the base": (
        "peft:lora",
        {"config": {"init_lora_weights": "pissa"}},
        UsageError,
        "base's own weights",
    ),
    "no rank left": ("peft:oft", {"config": {"r": 0, "oft_block_size": 1}}, UsageError, "trains nothing"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_answered_with_its_fix_and_leaves_the_model_alone(case):
    method, settings, error, words = MISTAKES[case]
    model = make_model("sam")
    before = list(model.state_dict())
    with pytest.raises(error, match=words):
        make_applied(model, method, **settings)
    assert list(model.state_dict()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model_name", "method", "settings", "layer"),
    [
        ("lraspp", "peft:lora", {"kinds": ("conv",), "config": {"r": 8}}, "groups"),
        (
            "unet",
            "peft:oft",
            {"kinds": ("conv",), "config": {"r": 0, "oft_block_size": 4}},
            "does not compute",
        ),
        ("unet", "peft:miss", {"kinds": ("conv",)}, "not support"),
    ],
)
def test_a_layer_on_which_the_tuner_is_not_right_is_refused(model_name, method, settings, layer):
    with pytest.raises(UsageError, match=layer):
        make_applied(make_model(model_name), method, include=("*encoder.1*", "*backbone*"), **settings)


@pytest.mark.parametrize("method", ["peft:loha+dora", "dora+peft:loha", "peft:loha+peft:lora"])
def test_two_that_decide_the_weight_of_one_layer_are_refused(method):
    with pytest.raises(UsageError, match="cannot both be on"):
        make_applied(make_model("sam"), method)


def test_a_sum_beside_the_tuner_is_added_to_its_output():
    model = make_model("sam")
    applied = make_applied(model, "peft:loha+lora")
    generator = torch.Generator().manual_seed(0)
    for parameter in applied.parameters().values():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    expected = logits(model)
    applied.merge()
    assert torch.allclose(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_shared_and_frozen_tensors_are_owned_and_not_trained():
    model = make_model("sam")
    applied = make_applied(model, "peft:vera", config={"r": 8})
    constants = [name for name, owned in applied.owned().items() if owned.constant]
    assert constants and not set(constants) & set(applied.parameters())
    assert applied.keys() > set(applied.owned()), "shared tensors have several keys"
    trained = sum(parameter.numel() for parameter in applied.parameters().values())
    counts = applied.counts()
    assert counts["trainable"] == trained
    assert counts[Role.ADAPTER] == 3 * (8 + 96)
    assert counts["total"] == sum(parameter.numel() for parameter in make_model("sam").parameters())


def test_capital_letters_do_not_matter():
    first, second = make_model("sam"), make_model("sam")
    a, b = make_applied(first, "peft:LoHa"), make_applied(second, "peft:loha")
    assert a.state_dict().keys() == b.state_dict().keys()


def test_sequences_are_handed_to_tuners_that_take_nothing_else():
    model = make_model("sam")
    make_applied(model, "peft:gralora", config={"r": 4})
    assert torch.isfinite(logits(model)).all()
