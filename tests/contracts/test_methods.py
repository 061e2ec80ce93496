"""The contracts that every method keeps on every model."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from segtune.errors import MergeError, NoSiteError
from segtune.methods import METHODS
from segtune.methods.apply import apply
from segtune.methods.base import PlacementSettings
from segtune.methods.full import Full
from segtune.types import Part, Site, SiteKind
from tests.contracts.table import (
    ALL_METHODS,
    CASES,
    MODELS,
    images,
    logits,
    loss_of,
    make_applied,
    make_model,
    masks,
    model_for,
    parts_of,
    train_steps,
)

NOT_COMPOSED = {
    # convolutions need a grid, which a sequence with further tokens has not
    ("sequence", "conv-lora+vpt"),
    ("hf:eomt", "conv-lora+vpt"),
    ("hf-backbone:dinov2", "conv-lora+vpt"),
    ("deeplabv3", "lst+head"),  # of what reaches a side block, 1e-13 behind norms on tiny maps, nothing moves
}


@pytest.mark.parametrize(("model_name", "method"), CASES)
def test_output_is_unchanged_at_the_start(model_name, method):
    model = make_model(model_name)
    before = logits(model)
    make_applied(model, method)
    loaded = METHODS.load(method)
    if loaded.starts_as_base:
        assert torch.equal(logits(model), before)
    else:
        difference = (logits(model) - before).abs().max() / before.abs().max()
        assert difference < loaded.start_difference
        assert difference > 0 or method.startswith("peft:"), "some tuners of a family start as the base"


@pytest.mark.parametrize(("model_name", "method"), CASES)
def test_a_step_moves_what_is_declared_and_nothing_else(model_name, method):
    model = make_model(model_name)
    applied = make_applied(model, method)
    declared = {name for name, owned in applied.owned().items() if not owned.constant}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(applied.parameters())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_steps(model, applied)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved <= declared, "something frozen has moved"
    assert moved == declared, "something declared has not moved"


@pytest.mark.parametrize(("model_name", "method"), CASES)
def test_the_number_of_parameters_equals_the_formula(model_name, method):
    model = make_model(model_name)
    applied = make_applied(model, method)
    formula = METHODS.load(method).named(method, parts_of(method)[method])
    head = sum(p.numel() for s in model.sites() if s.kind is SiteKind.HEAD for p in s.module.parameters())
    expected = head + formula.total_parameters([s for s in applied.sites if s.kind is not SiteKind.HEAD])
    if issubclass(METHODS.load(method), Full):  # positions and tokens lie outside of sites
        in_sites = {p for s in model.sites() for p in s.module._parameters.values()}
        named = model.named_parameters()
        expected += sum(p.numel() for n, p in named if p not in in_sites and n not in model.unused)
    assert applied.counts()["trainable"] == expected


@pytest.mark.parametrize(("model_name", "method"), CASES)
def test_merged_equals_unmerged_or_says_why_not(model_name, method):
    model = make_model(model_name)
    keys = list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    applied = make_applied(model, method)
    train_steps(model, applied)
    for parameter in applied.parameters().values():  # far from the start, where a wrong merge shows
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    # in double: a deep random network amplifies rounding; single layers have a test in float32
    model.double()
    x = images().double()
    expected = logits(model, x)
    if applied.merge_refusals():
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(MergeError, match=r"cannot be merged"):
            applied.merge()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        return
    applied.merge()
    difference = (logits(model, x) - expected).abs().max() / expected.abs().max()
    assert difference < 1e-9
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize(("model_name", "method"), CASES)
def test_remove_gives_the_base_back(model_name, method):
    model = make_model(model_name)
    classes = [type(module) for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    applied = make_applied(model, method)
    train_steps(model, applied)
    applied.remove()
    assert dict.fromkeys(base, True) == {
        name: torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items()
    }
    assert [type(module) for module in model.modules()] == classes
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_wrong_kind_of_site_is_refused_with_what_the_model_offers(method):
    model = nn.Sequential(nn.Embedding(4, 4), nn.Embedding(4, 4))
    sites = [
        Site(name=str(i), kind=SiteKind.STAGE, module=layer, part=Part.ENCODER)
        for i, layer in enumerate(model)
    ]
    parts = parts_of(method)
    if not isinstance(parts[method], METHODS.settings("bitfit").__mro__[1]):
        pytest.skip("trains whole parts, whatever their sites are")
    with pytest.raises(NoSiteError, match="stage"):
        apply(model, sites, parts)
    assert all(p.requires_grad for p in model.parameters()), "the model must be left as it was"


@pytest.mark.parametrize(("model_name", "method"), CASES)
def test_works_in_training_mode_under_autocast(model_name, method):
    model = make_model(model_name)
    applied = make_applied(model, method)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, images(), masks())
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in applied.parameters().items():
        assert parameter.dtype is torch.float32
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("model_name", "method"),
    [
        *((model_for(method), method) for method in ALL_METHODS),
        ("segformer", "lora"),
        ("sam", "lora"),
        ("sam", "vpt"),
    ],
)
def test_compiles_without_graph_breaks(model_name, method):
    model = make_model(model_name)
    applied = make_applied(model, method)
    train_steps(model, applied, num_steps=1)
    model.train()
    torch._dynamo.reset()
    results = []
    for forward in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        if model_name == "segformer":  # drop path draws other random numbers when compiled
            model.eval()
        loss = loss_of(forward, images(), masks())
        names, parameters = zip(*applied.parameters().items(), strict=True)
        results.append((loss, dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))))
    (loss, gradients), (compiled_loss, compiled_gradients) = results
    assert torch.allclose(loss, compiled_loss, atol=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, compiled_gradients[name], atol=1e-4), name


@pytest.mark.parametrize(
    ("model_name", "method"),
    [case for case in CASES if case[0] in ("unet", "deeplabv3", "attention", "sequence")],
)
def test_activation_checkpointing_gives_equal_gradients(model_name, method):
    gradients = []
    for use_checkpoint in (False, True):
        model = make_model(model_name)
        applied = make_applied(model, method)
        encode = model.encode_maps
        if use_checkpoint:
            model.encode_maps = lambda x, encode=encode: checkpoint(encode, x, use_reentrant=False)
        loss_of(model, images(), masks()).backward()
        gradients.append({name: p.grad for name, p in applied.parameters().items()})
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient is None) == (other is None)
        assert gradient is None or torch.equal(gradient, other), name


@pytest.mark.parametrize(
    ("model_name", "method"),
    [
        (model_name, method)
        for method in (
            "lora+norm",
            "lora+norm+bitfit",
            "head+lora",
            "norm+bitfit",
            "bitfit+head",
            "conv-lora+norm",
            "lora+conv-lora",
            "ia3+norm",
            "lora+ssf",
            "adapter+lora",
            "lora+vpt",
            "conv-lora+vpt",
            "vpt+head",
            "sam-adapter+vpt",
            "lst+head",
        )
        for model_name in MODELS
        if all((model_name, part) in CASES for part in method.split("+"))
        and (model_name, method) not in NOT_COMPOSED
    ],
)
def test_methods_compose(model_name, method):
    model = make_model(model_name)
    before = logits(model)
    applied = make_applied(model, method)
    if all(METHODS.load(part).starts_as_base for part in method.split("+")):
        assert torch.equal(logits(model), before)
    singles = [set(make_applied(make_model(model_name), part).owned()) for part in method.split("+")]
    assert set(applied.owned()) == set().union(*singles)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_steps(model, applied)
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, state[n])}
    assert moved == set(applied.owned())
    applied.remove()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "method", ["lora+ia3", "ia3+lora", "dora+lora", "ssf+lora", "ia3+ssf", "interpolated-lora+ia3"]
)
@pytest.mark.parametrize("model_name", ["unet", "segformer"])
def test_methods_on_the_same_layers_merge(model_name, method):
    model = make_model(model_name)
    applied = make_applied(model, method)
    for parameter in applied.parameters().values():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.double()
    x = images().double()
    expected = logits(model, x)
    applied.merge()
    assert (logits(model, x) - expected).abs().max() / expected.abs().max() < 1e-9


SCRIPT = """
import sys, torch
from tests.contracts.table import logits, make_applied, make_model
for line in sys.stdin.read().split():
    model_name, method = line.split(",")
    saved = torch.load(f"{sys.argv[1]}/{model_name}-{method}.pt", weights_only=True)
    model = make_model(model_name)
    make_applied(model, method).load_state_dict(saved["tensors"])
    if not torch.equal(logits(model), saved["logits"]):
        print(model_name, method)
"""


def test_saved_tensors_give_the_same_output_in_a_fresh_process(tmp_path: Path):
    for model_name, method in CASES:
        model = make_model(model_name)
        applied = make_applied(model, method)
        train_steps(model, applied, num_steps=1)
        saved = {"tensors": applied.state_dict(), "logits": logits(model)}
        torch.save(saved, tmp_path / f"{model_name}-{method}.pt")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        input="\n".join(f"{model},{method}" for model, method in CASES),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout == "", "other outputs after loading"


@pytest.mark.parametrize("method", ALL_METHODS)
def test_an_adapted_model_can_be_copied_and_pickled(method):
    model = make_model(model_for(method))
    applied = make_applied(model, method)
    train_steps(model, applied, num_steps=1)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), logits(model))


def test_a_failure_in_the_second_method_leaves_the_model_as_it_was():
    model = make_model("unet-bilinear")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    parts = {**parts_of("lora"), **parts_of("norm", include=("no such layer",))}
    with pytest.raises(NoSiteError):
        apply(model, model.sites(), parts)
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == list(before)
    assert all(p.requires_grad for p in model.parameters())


def test_every_placement_setting_is_that_of_one_class():
    assert issubclass(METHODS.settings("lora"), tuple(METHODS.settings("bitfit").__mro__[1:2]))
    assert PlacementSettings.model_fields.keys() <= METHODS.settings("lora").model_fields.keys()
