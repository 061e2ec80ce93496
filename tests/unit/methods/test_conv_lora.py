"""Conv-LoRA: its formula, its grids, its counts and what it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from segtune.engine.cost import estimate_memory
from segtune.errors import MergeError, NoSiteError, UsageError
from segtune.methods import METHODS
from segtune.methods.apply import Applied, apply
from segtune.methods.conv_lora import ConvLoraOperation
from segtune.methods.experts import expert_plain
from segtune.models import MODELS
from segtune.types import Access, Part, Site, SiteKind
from tests.contracts.table import images, make_applied, make_model, masks

WIDTH, OUTPUTS = 6, 9


def adapted(layer: nn.Module, method: str = "conv-lora", **settings: object) -> Applied:
    """The method on one layer, with its last matrix away from 0."""
    kind = SiteKind.ATTENTION_QKV if isinstance(layer, nn.Linear) else SiteKind.CONV
    site = Site(name="layer", kind=kind, module=layer, part=Part.ENCODER)
    if kind is SiteKind.CONV:
        settings["kinds"] = ("conv",)
    applied = apply(layer, [site], {method: METHODS.settings(method)(**settings)})
    nn.init.normal_(operation_of(applied).up)
    return applied


def operation_of(applied: Applied) -> ConvLoraOperation:
    (operation,) = applied.operations
    assert isinstance(operation, ConvLoraOperation)
    return operation


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, OUTPUTS).eval()


def by_hand(operation: ConvLoraOperation, z: torch.Tensor, *, residual: bool, interpolation: str, gelu: bool):
    """`z + sum of g_i E_i(z)` from the definition of the experts, one map at a time."""
    rank = z.shape[1]
    outputs = []
    for one in z.split(1):
        routing = operation.gate(one)
        total = one if residual else torch.zeros_like(one)
        for gate, index in zip(routing.gates[0], routing.experts[0].tolist(), strict=True):
            columns = operation.experts.kernels[:, 9 * rank * index : 9 * rank * (index + 1)]
            bias = operation.experts.bias[rank * index : rank * (index + 1)]
            kernel = columns.reshape(rank, rank, 3, 3)
            total = total + gate * expert_plain(one, kernel, bias, index + 1, interpolation, gelu=gelu)
        outputs.append(total)
    return torch.cat(outputs)


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("formula", ["released", "paper"])
def test_the_output_is_the_formula(formula, top_k):
    layer = linear().double()
    x = torch.randn(5, 4, 7, WIDTH, dtype=torch.float64)
    base = layer(x)
    operation = operation_of(adapted(layer, rank=2, alpha=3.0, formula=formula, top_k=top_k)).double()
    for parameter in operation.parameters():
        nn.init.normal_(parameter)
    released = formula == "released"
    z = (x @ operation.down.T).permute(0, 3, 1, 2)
    interpolation = "bicubic" if released else "bilinear"
    mixed = by_hand(operation, z, residual=released, interpolation=interpolation, gelu=released)
    expected = base + 1.5 * mixed.permute(0, 2, 3, 1) @ operation.up.T
    assert len(set(operation.gate(z).experts.flatten().tolist())) > 1
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-9)


def test_a_convolution_gets_the_same_on_its_output_grid():
    torch.manual_seed(0)
    layer = nn.Conv2d(WIDTH, OUTPUTS, 3, stride=2, padding=1, padding_mode="reflect").eval().double()
    x = torch.randn(3, WIDTH, 9, 12, dtype=torch.float64)
    base = layer(x)
    operation = operation_of(adapted(layer, rank=2)).double()
    kernel = operation.down.view(2, WIDTH, 3, 3)
    z = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2)
    mixed = by_hand(operation, z, residual=True, interpolation="bicubic", gelu=True)
    expected = base + F.conv2d(mixed, operation.up[:, :, None, None])
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-9)
    last = layer(x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(last, expected, rtol=0, atol=1e-9)


def test_multi_scale_is_the_mean_of_all_experts():
    layer = linear()
    operation = operation_of(adapted(layer, "conv-lora:multi-scale", num_experts=3)).train()
    z = torch.randn(2, 3, 5, 4)
    mean = sum(operation.experts.run(index, z) for index in range(3)) / 3
    assert operation.gate is None
    assert torch.allclose(operation._mixed(z), z + mean)
    assert operation.penalty is None


def test_inception_has_kernels_of_several_sizes_at_one_scale():
    applied = adapted(linear(), "conv-lora:inception", rank=2)
    experts = operation_of(applied).experts
    assert experts.kernel_sizes == (1, 3, 5)
    assert [member.scale for member in experts.members] == [1, 1, 1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (14, 14)])
def test_tokens_on_a_grid_are_a_map(shape):
    layer = linear()
    operation = operation_of(adapted(layer))
    operation.gate.gate.data.normal_()
    x = torch.randn(2, *shape, WIDTH)
    expected = layer(x)
    operation.image_size = (32 * shape[0], 32 * shape[1])
    assert torch.allclose(layer(x.flatten(1, 2)), expected.flatten(1, 2), atol=1e-6)


def test_tokens_of_a_square_grid_need_no_image_and_other_tokens_are_refused():
    layer = linear()
    operation = operation_of(adapted(layer))
    x = torch.randn(2, 3, 3, WIDTH)
    assert torch.equal(layer(x.flatten(1, 2)), layer(x).flatten(1, 2))
    operation.image_size = (64, 96)  # windows have a shape of their own
    assert torch.equal(layer(x.flatten(1, 2)), layer(x).flatten(1, 2))
    with pytest.raises(UsageError, match=r"12 tokens.*64 x 96"):
        layer(torch.randn(2, 12, WIDTH))
    with pytest.raises(UsageError, match=r"got 2 axes"):
        layer(torch.randn(2, WIDTH))


def test_every_map_that_enters_is_routed_by_itself():
    layer = linear()
    operation = operation_of(adapted(layer))
    operation.gate.gate.data.normal_()
    windows = torch.randn(50, 4, 4, WIDTH)
    together = layer(windows)
    apart = torch.cat([layer(window) for window in windows.split(1)])
    assert torch.allclose(together, apart, atol=1e-6)
    layer(windows)
    assert operation.routing_entropy > 0.5
    assert torch.equal(layer(windows), together), "eval must be deterministic"


def test_noise_in_training_and_its_balance_loss():
    layer = linear()
    operation = operation_of(adapted(layer))
    x = torch.randn(16, 4, 4, WIDTH)
    layer(x)
    assert operation.penalty is None
    layer.train()
    first, penalty = layer(x), operation.penalty
    assert penalty.ndim == 0 and penalty.requires_grad
    assert not torch.equal(layer(x), first)
    layer.eval()(x)
    assert operation.penalty is None


def test_the_model_returns_the_sum_of_the_balance_losses_with_its_output():
    model = make_model("attention")
    applied = make_applied(model, "conv-lora")
    assert model(images()).penalties == {}
    output = model.train()(images())
    expected = sum(operation.penalty for operation in applied.operations)
    assert output.penalties["balance"] == expected
    names = [name for name in applied.parameters() if ".gate." in name]
    gradients = torch.autograd.grad(
        output.penalties["balance"], [applied.parameters()[name] for name in names]
    )
    assert len(names) == 4
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize(("gate", "learns"), [("released", False), ("switch", True)])
def test_whether_the_task_teaches_the_gate(gate, learns):
    layer = linear()
    operation = operation_of(adapted(layer, gate=gate))
    operation.gate.gate.data.normal_()
    layer(torch.randn(4, 5, 5, WIDTH)).square().mean().backward()
    assert bool(operation.gate.gate.grad.abs().sum() > 1e-9) is learns


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_values_under_autocast_stay_finite(dtype):
    layer = linear().train()
    operation = operation_of(adapted(layer, top_k=2))
    x = 60 * torch.randn(6, 5, 5, WIDTH)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype is dtype and torch.isfinite(y).all()
    (y.float().square().mean() + operation.penalty).backward()
    for parameter in operation.parameters():
        assert parameter.dtype is torch.float32 and torch.isfinite(parameter.grad).all()


def test_a_layer_of_low_precision_keeps_its_type():
    layer = linear().bfloat16()
    adapted(layer)
    assert next(layer.adapters.parameters()).dtype is torch.float32
    assert layer(torch.randn(1, 3, 3, WIDTH, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_the_last_forward_is_not_copied_along():
    layer = linear().train()
    operation = operation_of(adapted(layer))
    x = torch.randn(2, 4, 4, WIDTH)
    layer(x)
    assert operation.penalty is not None
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.adapters["conv-lora"].penalty is None
        assert torch.equal(copied.eval()(x), layer.eval()(x))
        layer.train()(x)


@pytest.mark.parametrize(
    ("method", "rank", "extra"),
    [
        ("conv-lora", 3, 8 * (9 * 9 + 3) + 2 * 8 * 3),
        ("conv-lora", 6, 8 * (9 * 36 + 6) + 2 * 8 * 6),
        ("conv-lora:multi-scale", 3, 8 * (9 * 9 + 3)),
        ("conv-lora:inception", 3, 35 * 9 + 9 + 2 * 3 * 3),
    ],
)
def test_the_published_count_on_the_attention_of_vit_huge(method, rank, extra):
    with torch.device("meta"):
        layer = nn.Linear(1280, 3840)
    applied = apply(
        layer,
        [Site(name="qkv", kind=SiteKind.ATTENTION_QKV, module=layer, part=Part.ENCODER)],
        {method: METHODS.settings(method)(rank=rank)},
    )
    count = rank * (1280 + 3840) + extra
    assert applied.counts()["trainable"] == count
    decoder = 3.506304e6
    published = {("conv-lora", 3): 4.02, ("conv-lora:inception", 3): 4.01}
    if (method, rank) in published:
        assert round((decoder + 32 * count) / 1e6, 2) == published[method, rank]


def test_settings_that_contradict_each_other_are_refused():
    settings = METHODS.settings("conv-lora")
    for wrong, message in (
        ({"scales": (1, 2), "num_experts": 3}, "scales has 2"),
        ({"scales": (0, 2)}, "at least 1"),
        ({"kernel_sizes": (4,)}, "odd"),
        ({"kernel_sizes": (3, 5)}, "2 values for 8"),
        ({"top_k": 9}, "more than the 8"),
        ({"gate": "soft"}, "released"),
    ):
        with pytest.raises(ValidationError, match=message):
            settings(**wrong)
    assert settings(scales="1,3,8").expert_scales() == (1, 3, 8)


def test_a_single_expert_has_no_gate():
    operation = operation_of(adapted(linear(), num_experts=1))
    assert operation.gate is None


def test_it_is_not_merged_and_says_why():
    layer = linear()
    applied = adapted(layer)
    with pytest.raises(MergeError, match="chosen for each input"):
        applied.merge()


def test_layers_that_carry_no_branch_are_left_out_or_refused():
    grouped = nn.Conv2d(4, 4, 3, groups=4)
    with pytest.raises(NoSiteError, match="have groups"):
        adapted(grouped)
    model = nn.Sequential(grouped, nn.Conv2d(4, 4, 1), nn.Linear(4, 4))
    sites = [
        Site(name="0", kind=SiteKind.CONV, module=model[0], part=Part.ENCODER),
        Site(name="1", kind=SiteKind.CONV, module=model[1], part=Part.ENCODER),
        Site(name="2", kind=SiteKind.LINEAR, module=model[2], part=Part.ENCODER, access=Access.WEIGHT),
    ]
    settings = METHODS.settings("conv-lora")(kinds=("conv", "linear"))
    assert [site.name for site in apply(model, sites, {"conv-lora": settings}).sites] == ["1"]


def test_convolutions_of_a_network_train():
    model = make_model("lraspp")
    before = model(images()).logits
    applied = make_applied(model, "conv-lora", kinds=("conv",))
    assert torch.equal(model(images()).logits, before)
    output = model.train()(images())
    loss = F.cross_entropy(output.logits, masks()) + 0.01 * output.penalties["balance"]
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in applied.parameters().values())


def test_memory_is_estimated_without_values():
    kept = {}
    for method in ("lora", "conv-lora", "conv-lora:multi-scale"):
        settings = METHODS.settings(method)(rank=3, kinds=("conv",))
        kept[method] = estimate_memory(
            model="unet",
            model_settings=MODELS.settings("unet")(depth=1, width=8),
            num_classes=3,
            parts={method: settings},
            batch_size=4,
            size=(32, 48),
            precision="32",
        ).activations
    assert kept["lora"] < kept["conv-lora"] < kept["conv-lora:multi-scale"]
