"""What holds for a method that trains nothing."""

from __future__ import annotations

import pytest
import torch

from segtune.engine.build import build_tunable
from segtune.errors import SettingsError, UsageError
from segtune.methods import METHODS
from segtune.models import MODELS as MODEL_REGISTRY
from segtune.models.build import build_model
from tests.contracts.table import MODELS, logits, make_applied, make_model, parts_of
from tests.support import make_config

UNTRAINED = [name for name in METHODS if not name.endswith(":") and not METHODS.load(name).trains]


def own_class(module):
    """A layer's class, without the one that keeps its running statistics still."""
    return getattr(type(module), "adapted_class", type(module))


@pytest.mark.parametrize("method", UNTRAINED)
@pytest.mark.parametrize("model_name", MODELS)
def test_nothing_is_changed_trained_or_owned(model_name, method):
    # frozen at the start too: torch's matmul folds a batch, or not, by whether a matrix requires a gradient
    model = make_model(model_name).requires_grad_(False)
    before, classes = logits(model), [own_class(module) for module in model.modules()]
    applied = make_applied(model, method)
    assert torch.equal(logits(model), before)
    assert [own_class(module) for module in model.modules()] == classes
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert applied.owned() == {} and applied.counts()["trainable"] == 0
    formula = METHODS.load(method)(parts_of(method)[method])
    assert sum(formula.num_parameters(site) for site in model.sites()) == 0
    applied.load_state_dict(applied.state_dict())
    applied.merge()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("method", UNTRAINED)
def test_running_statistics_stay_in_training_mode(method):
    model = make_model("unet")
    make_applied(model, method)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    model(torch.rand(2, 3, 64, 96))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("setting", ["train_head", "train_norm", "train_bias"])
def test_there_is_nothing_to_switch_on(setting):
    with pytest.raises(SettingsError, match=setting):
        make_config(method="zero-shot", **{f"method__{setting}": True})


def build(model, weights, method="zero-shot", **settings):
    return build_tunable(
        model=model,
        model_settings=MODEL_REGISTRY.settings(model)(**settings),
        weights=weights,
        num_classes=3,
        method_parts=parts_of(method),
        seed=0,
    )


def test_random_weights_and_new_classifiers_are_refused(tmp_path):
    with pytest.raises(UsageError, match="the weights of unet are random"):
        build("unet", "none", depth=1, width=4)
    other = build_model("unet", 5, MODEL_REGISTRY.settings("unet")(depth=1, width=4))
    torch.save(other.state_dict(), tmp_path / "five.pth")
    with pytest.raises(UsageError, match="classifier for 3 classes is new"):
        build("unet", str(tmp_path / "five.pth"), depth=1, width=4)
    with pytest.raises(UsageError, match="cannot be part of"):
        build("unet", str(tmp_path / "five.pth"), "zero-shot+lora", depth=1, width=4)
    own = build_model("unet", 3, MODEL_REGISTRY.settings("unet")(depth=1, width=4))
    torch.save(own.state_dict(), tmp_path / "three.pth")
    assert build("unet", str(tmp_path / "three.pth"), depth=1, width=4).applied.parameters() == {}


def test_base_takes_what_zero_shot_refuses(tmp_path):
    assert build("unet", "none", "base", depth=1, width=4).applied.parameters() == {}
    with pytest.raises(UsageError, match="base trains nothing and cannot be part of"):
        build("unet", "none", "base+lora", depth=1, width=4)
