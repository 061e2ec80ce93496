"""A frozen base in fewer bits: exact against its own floats, saved and resumed to the bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import segtune
from segtune.engine.build import Tunable, build_tunable
from segtune.engine.cost import estimate_memory
from segtune.engine.fit import fit
from segtune.engine.merge import logits_of, merge_run, probes
from segtune.engine.quantize import KINDS, Int8Weight, Nf4Weight, QuantizedWeight, give_back_floats
from segtune.engine.run import load_run
from segtune.errors import MissingExtraError, UsageError
from segtune.methods import METHODS
from segtune.methods.attach import Adapted, attach, own_weight
from segtune.models import MODELS
from tests.support import TINY_SAM, make_config, make_data

SAM = {**TINY_SAM, "width": 32}
NF4 = (
    "-1 -0.696193 -0.525073 -0.394917 -0.284441 -0.184773 -0.091050 0"
    " 0.079580 0.160930 0.246112 0.337915 0.440710 0.562617 0.722957 1"
)
"""The values of QLoRA, appendix E."""


@pytest.fixture(params=["int8", "nf4"])
def kind(request) -> str:
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes", reason="nf4 needs the package bitsandbytes")
    return request.param


def built(quantize: str = "none", method: str = "lora", **settings) -> Tunable:
    return build_tunable(
        model="sam-vit-base",
        model_settings=MODELS.settings("sam-vit-base")(**SAM),
        weights="none",
        num_classes=3,
        method_parts={method: METHODS.settings(method)(**settings)},
        seed=0,
        quantize=quantize,
    )


def tiny(data: Path, **settings):
    sizes = {f"model__{name}": value for name, value in SAM.items()}
    own = {
        "model__name": "sam-vit-base",
        "model__weights": "none",
        "data__crop": (32, 32),
        **sizes,
        **settings,
    }
    return make_config(data, **own)


def quantized_names(model: nn.Module) -> set[str]:
    return {
        name
        for name, layer in model.named_modules()
        if isinstance(layer, Adapted) and any(isinstance(o, QuantizedWeight) for o in layer.operations())
    }


@pytest.mark.parametrize("size", [(10, 96), (3, 64), (64, 2), (2, 160)])
def test_codes_are_the_nearest_of_a_slow_search(kind: str, size: tuple[int, int]):
    weight = torch.randn(size, generator=torch.Generator().manual_seed(1)) * 0.05
    quantizer = KINDS[kind]
    assert quantizer.fits(weight)
    floats = quantizer.decode(*quantizer.encode(weight), torch.float32)
    if kind == "int8":
        values, groups = [code / 127 for code in range(-127, 128)], weight.tolist()
    else:
        values, groups = [float(value) for value in NF4.split()], weight.view(-1, 64).tolist()
    expected = []
    for group in groups:
        largest = max(abs(number) for number in group)
        expected += [min((abs(largest * v - n), largest * v) for v in values)[1] for n in group]
    assert torch.allclose(floats.flatten(), torch.tensor(expected), atol=1e-6)


def test_a_row_of_zeros_and_shapes_that_do_not_fit():
    weight = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    assert torch.equal(Int8Weight.decode(*Int8Weight.encode(weight), torch.float32)[0], torch.zeros(2))
    assert not Nf4Weight.fits(torch.zeros(64, 3)) and not Nf4Weight.fits(torch.zeros(3, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_what_one_with_its_floats_computes(kind: str, dtype: torch.dtype):
    torch.manual_seed(0)
    layer, plain = nn.Linear(64, 48).requires_grad_(False), nn.Linear(64, 48).requires_grad_(False)
    layer.bias.requires_grad_(True)
    held = own_weight(layer)
    operation = KINDS[kind](layer)
    attach(layer, "quantized", operation)
    assert own_weight(layer) is held and held.dtype in (
        torch.int8,
        torch.uint8,
    )  # who holds it holds no floats
    plain.bias = layer.bias
    plain.weight.data = operation.decode(own_weight(layer), operation.scales, dtype).float()
    assert layer.weight.dtype == torch.float32  # for who reads it
    inputs = [torch.randn(2, 5, 64, requires_grad=True) for _ in range(2)]
    inputs[1].data = inputs[0].data.clone()
    found = []
    for one, x in zip((layer, plain), inputs, strict=True):
        layer.bias.grad = None
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = one(x)
        y.float().square().sum().backward()
        found.append((y.detach(), x.grad, layer.bias.grad))
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype and torch.allclose(ours.float(), theirs.float(), **close)


@pytest.mark.parametrize("method", ["lora", "bitfit", "ia3", "pissa"])
def test_gradients_are_those_on_the_floats_that_the_codes_stand_for(kind: str, method: str):
    quantized, whole = built(kind, method), built(kind, method)
    assert quantized.applied.counts() == built("none", method).applied.counts()
    give_back_floats(whole.model)
    assert not quantized_names(whole.model)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for one in (quantized, whole):
        generator = torch.Generator().manual_seed(1)
        for parameter in one.applied.parameters().values():
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        one.model.train()(image).logits.square().sum().backward()
    others = whole.applied.parameters()
    gradients = {n: (p.grad, others[n].grad) for n, p in quantized.applied.parameters().items()}
    assert any(ours is not None and ours.abs().max() > 0 for ours, _ in gradients.values())
    for name, (ours, theirs) in gradients.items():
        assert (ours is None) == (theirs is None), name
        assert ours is None or torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * theirs.abs().max()), name


def test_only_frozen_linear_layers_that_nothing_changes(kind: str):
    names = quantized_names(built(kind, "dora", kinds=("attention_qkv",)).model)
    assert not any(name.endswith("qkv") for name in names)  # dora computes with the weight
    assert any(name.endswith("mlp.lin1") for name in names)
    made = built(kind)
    names, head = quantized_names(made.model), made.model.head_names()
    assert any(name.endswith("qkv") for name in names)  # a branch does not
    for name, layer in made.model.named_modules():
        assert name not in names or (isinstance(layer, nn.Linear) and not name.startswith(tuple(head)))
    kept = {name: p for name, p in made.model.named_parameters() if name.rpartition(".")[0] not in names}
    assert {p.dtype for p in kept.values()} == {torch.float32}
    assert not names & {name.rpartition(".")[0] for name in made.applied.parameters()}


def test_nothing_to_quantize_is_a_mistake():
    with pytest.raises(UsageError, match="no linear layer is frozen and left as it is by full") as caught:
        built("int8", "full")
    assert "leave model.quantize out" in str(caught.value.hint)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "bitsandbytes.functional", raising=False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError) as caught:
        built("nf4")
    assert caught.value.hint == "pip install 'segtune[nf4]'"
    assert "kernels" not in sys.modules


def test_it_is_the_same_base_in_fewer_bytes_and_the_estimate_knows(kind: str):
    made = built(kind)
    assert made.quantized is not None and made.fingerprint() == built().fingerprint()
    assert made.quantized.bytes_after < (0.35 if kind == "int8" else 0.15) * made.quantized.bytes_before
    settings = {"model_settings": MODELS.settings("sam-vit-base")(**SAM), "num_classes": 3}
    common = {"parts": {"lora": METHODS.settings("lora")()}, "batch_size": 1, "size": (32, 32)}
    plain, less = (
        estimate_memory(model="sam-vit-base", precision="32", quantize=q, **settings, **common)
        for q in ("none", kind)
    )
    assert plain.weights - less.weights == made.quantized.bytes_before - made.quantized.bytes_after


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("few"), num_train=4, num_val=1, num_test=1, sizes=((32, 32),))


@pytest.fixture(scope="module")
def runs(few: Path, tmp_path_factory) -> dict[str, Path]:
    """A run for each kind of base."""
    folder, made = tmp_path_factory.mktemp("quantized"), {}
    for kind in KINDS:
        if kind == "nf4" and not _has_library():
            continue
        made[kind] = fit(tiny(few, model__quantize=kind, train__steps=2), folder / kind).folder
    return made


def _has_library() -> bool:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return False
    return True


def test_a_saved_adapter_comes_back_on_the_same_base(kind: str, runs: dict[str, Path]):
    folder = runs[kind] / "adapter"
    assert json.loads((folder / "adapter.json").read_text())["quantize"] == kind
    first, second = (load_run(folder, accelerator="cpu").tunable for _ in range(2))
    assert quantized_names(first.model)
    images = probes(first.model)
    assert all(torch.equal(logits_of(first.model, i), logits_of(second.model, i)) for i in images)
    assert set(first.applied.state_dict()) == set(load_file(folder / "adapter.safetensors"))


def test_an_interrupted_run_ends_with_the_same_bits(runs, few: Path, tmp_path: Path):
    config = tiny(few, model__quantize="int8", train__steps=2, train__checkpoint_every=1)
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        _stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            fit(config, run)
    fit(config, run, resume=True)
    whole, resumed = (load_file(f / "adapter" / "adapter.safetensors") for f in (runs["int8"], run))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole | resumed)


def _stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    from segtune.engine import train

    real, calls = train.save_checkpoint, []

    def save(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt

    patch.setattr(train, "save_checkpoint", save)


def test_a_merged_file_holds_the_floats_that_the_codes_stand_for(kind: str, runs, tmp_path: Path):
    run = load_run(runs[kind], accelerator="cpu")
    report = merge_run(run, tmp_path / "merged.safetensors")
    assert report["quantize"] == kind
    assert max(map(max, report["relative_differences"].values())) < 1e-4
    merged = load_file(tmp_path / "merged.safetensors")
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in merged.values())
    assert quantized_names(run.tunable.model)  # the run is as it was


def test_an_export_is_for_the_original_base_and_says_how_far_that_is(runs, tmp_path: Path):
    pytest.importorskip("peft")
    from segtune.engine.peft_export import export_peft

    report = export_peft(load_run(runs["int8"], accelerator="cpu"), tmp_path / "out")
    assert report["quantize"] == "int8"
    assert max(map(max, report["relative_differences"].values())) < 1e-4
    assert 1e-5 < max(report["difference_of_quantized"]) < 0.2


def test_divided_models_are_refused(tiny_data: Path, tmp_path: Path):
    config = tiny(tiny_data, model__quantize="int8", train__strategy="fsdp", train__devices=2)
    with pytest.raises(UsageError, match=r"train.strategy=fsdp .* model.quantize=int8"):
        fit(config, tmp_path / "run")


def test_a_model_without_a_method_is_not_quantized():
    with pytest.raises(UsageError, match="all floats") as caught:
        segtune.load_model("unet", 2, quantize="int8")
    assert "segtune.fit" in str(caught.value.hint)
