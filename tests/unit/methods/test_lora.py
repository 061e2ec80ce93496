"""LoRA on every form of layer that a segmentation network has."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from segtune.errors import UsageError
from segtune.methods.apply import apply
from segtune.methods.attach import attach, own_weight
from segtune.methods.lora import LoraOperation, LoraSettings, branch_possible, choose_form, factor_shape
from segtune.methods.rslora import RsLoraSettings
from segtune.types import Access, Part, Site, SiteKind

# torch's own remark on even kernels with padding="same"
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


class PaddedConv(nn.Conv2d):
    """A subclass with a forward of its own, as in EfficientNet implementations."""

    def forward(self, x):
        return nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


LAYERS = {
    "linear": lambda: nn.Linear(6, 10),
    "linear-no-bias": lambda: nn.Linear(6, 10, bias=False),
    "conv": lambda: nn.Conv2d(6, 10, 3, padding=1),
    "conv-1x1": lambda: nn.Conv2d(6, 10, 1),
    "conv-3x1": lambda: nn.Conv2d(6, 10, (3, 1), padding=(1, 0)),
    "conv-stride": lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1),
    "conv-dilation": lambda: nn.Conv2d(6, 10, 3, padding=2, dilation=2),
    "conv-same": lambda: nn.Conv2d(6, 10, 3, padding="same"),
    "conv-same-dilation": lambda: nn.Conv2d(6, 10, 3, padding="same", dilation=2),
    "conv-even-same": lambda: nn.Conv2d(6, 10, 4, padding="same"),
    "conv-reflect": lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect"),
    "conv-replicate": lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="replicate"),
    "conv-circular": lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="circular", stride=2),
    "conv-groups": lambda: nn.Conv2d(6, 10, 3, padding=1, groups=2),
    "conv-depthwise": lambda: nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False),
    "conv-depthwise-dilated-reflect": lambda: nn.Conv2d(
        6, 6, 3, padding=2, dilation=2, groups=6, padding_mode="reflect"
    ),
    "conv-subclass": lambda: PaddedConv(6, 10, 2),
    "transposed": lambda: nn.ConvTranspose2d(6, 10, 2, stride=2),
    "transposed-3x3": lambda: nn.ConvTranspose2d(6, 10, 3, stride=2, padding=1, output_padding=1),
    "transposed-dilation": lambda: nn.ConvTranspose2d(6, 10, 3, dilation=2, bias=False),
    "transposed-groups": lambda: nn.ConvTranspose2d(6, 10, 2, stride=2, groups=2),
}


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    shape = (3, 5, 6) if isinstance(layer, nn.Linear) else (2, 6, 9, 11)
    return layer, torch.randn(shape)


def trained(layer: nn.Module, form: str, **changes: object) -> LoraOperation:
    torch.manual_seed(1)
    options = {"rank": 3, "scale": 0.7, "dropout": 0.0, "form": form, **changes}
    operation = LoraOperation(layer, **options)
    nn.init.normal_(operation.up)
    return operation


def changed_reference(layer: nn.Module, operation: LoraOperation) -> nn.Module:
    """The layer with `W0 + s B A` written into its weight, element by element for transposed ones."""
    reference = copy.deepcopy(layer)
    product = operation.up @ operation.down
    weight = own_weight(reference)
    if isinstance(layer, nn.ConvTranspose2d):
        inputs, outputs, height, width = weight.shape
        delta = torch.empty_like(weight)
        for i in range(inputs):
            for o in range(outputs):
                for k in range(height):
                    for m in range(width):
                        delta[i, o, k, m] = product[o, (i * height + k) * width + m]
    else:
        delta = product.view(weight.shape)
    weight.data += operation.scale * delta
    return reference


def forms(layer: nn.Module) -> list[str]:
    return ["weight", "branch"] if branch_possible(layer, Access.CALL) else ["weight"]


CASES = [(name, form) for name in LAYERS for form in forms(LAYERS[name]())]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_forward_and_gradients_equal_the_changed_weight(name, form):
    layer, x = make(name)
    layer.double(), (x := x.double())
    operation = trained(layer, form).double()
    reference = changed_reference(layer, operation)
    attach(layer, "lora", operation)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    y1, y2 = layer(x1), reference(x2)
    assert torch.allclose(y1, y2, rtol=1e-10, atol=1e-10)
    g = torch.randn_like(y1)
    y1.backward(g), y2.backward(g)
    assert torch.allclose(x1.grad, x2.grad, rtol=1e-9, atol=1e-9)
    # dL/dA and dL/dB follow from dL/dW of the reference by the chain rule
    dw = own_weight(reference).grad
    if isinstance(layer, nn.ConvTranspose2d):
        dw = dw.transpose(0, 1)
    matrix = dw.reshape(factor_shape(layer))
    assert torch.allclose(operation.up.grad, operation.scale * matrix @ operation.down.T, atol=1e-9)
    assert torch.allclose(operation.down.grad, operation.scale * operation.up.T @ matrix, atol=1e-9)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_merged_equals_unmerged_in_single_precision(name, form):
    layer, x = make(name)
    operation = trained(layer, form)
    merged = copy.deepcopy(layer)
    attach(layer, "lora", operation)
    with torch.no_grad():
        operation.fold(merged)
        expected, got = layer(x), merged(x)
    assert (got - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize("name", [name for name, form in CASES if form == "branch" and "linear" not in name])
def test_channels_last_gives_the_same(name):
    layer, x = make(name)
    attach(layer, "lora", trained(layer, "branch"))
    expected = layer(x)
    layer.to(memory_format=torch.channels_last)
    got = layer(x.to(memory_format=torch.channels_last))
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_that_others_read_is_the_changed_one(name):
    layer, x = make(name)
    operation = trained(layer, "weight")
    reference = changed_reference(layer, operation)
    attach(layer, "lora", operation)
    assert torch.allclose(layer.weight, own_weight(reference), atol=1e-6)
    layer.weight.sum().backward()
    assert operation.up.grad is not None and layer(x).shape == reference(x).shape


def test_layers_whose_weight_is_read_get_the_weight_form():
    layer = nn.Linear(4, 4)
    assert choose_form(layer, Access.CALL) == "branch"
    assert choose_form(layer, Access.WEIGHT) == "weight"
    assert choose_form(LAYERS["conv-subclass"](), Access.CALL) == "weight"
    assert choose_form(LAYERS["conv-groups"](), Access.CALL) == "weight"


def test_attention_whose_output_projection_is_read_is_adapted():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    before = attention(x, x, x)[0]
    operation = trained(attention.out_proj, "weight")
    attach(attention.out_proj, "lora", operation)
    assert not torch.allclose(attention(x, x, x)[0], before)


def test_a_low_precision_base_keeps_its_adapter_in_single_precision():
    layer = nn.Linear(8, 8).to(torch.bfloat16)
    operation = trained(layer, "branch")
    attach(layer, "lora", operation)
    y = layer(torch.randn(2, 8, dtype=torch.bfloat16))
    assert y.dtype is torch.bfloat16
    assert operation.up.dtype is torch.float32


def site(layer: nn.Module) -> Site:
    kind = SiteKind.LINEAR if isinstance(layer, nn.Linear) else SiteKind.CONV
    return Site(name="0", kind=kind, module=layer, part=Part.ENCODER)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"rank": 4}, 1.0),
        ({"rank": 4, "alpha": 8}, 2.0),
        ({"rank": 4, "alpha": 8, "rank_stabilised": True}, 4.0),
    ],
)
def test_scale(settings, scale):
    model = nn.Sequential(nn.Linear(8, 8))
    applied = apply(model, [site(model[0])], {"lora": LoraSettings(**settings)})
    assert applied.operations[0].scale == scale


def test_dropout_drops_in_training_only_and_forces_the_branch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    applied = apply(model, [site(model[0])], {"lora": LoraSettings(dropout=0.5)})
    assert not applied.operations[0].changes_weight
    nn.init.normal_(applied.operations[0].up)
    x = torch.randn(1, 3, 8, 8)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_dropout_is_refused_where_it_cannot_be_had():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(UsageError, match="dropout cannot be had on 0"):
        apply(model, [site(model[0])], {"lora": LoraSettings(dropout=0.5)})


FUSED = (("q", 0, 4), ("k", 4, 8), ("v", 8, 12))


def fused_site(layer: nn.Module) -> Site:
    return Site(
        name="0", kind=SiteKind.ATTENTION_QKV, module=layer, part=Part.ENCODER, channel_axis=-1, splits=FUSED
    )


@pytest.mark.parametrize(
    "layer", [lambda: nn.Linear(6, 12), lambda: nn.Conv2d(6, 12, 1), lambda: nn.Conv2d(6, 12, 3)]
)
@pytest.mark.parametrize("targets", [("q",), ("k",), ("v", "q"), ("k", "v"), ("q", "k", "v"), None])
def test_targets_restrict_the_change_to_their_outputs(layer, targets):
    torch.manual_seed(0)
    model = nn.Sequential(layer()).double()
    x = torch.randn(2, 6).double() if isinstance(model[0], nn.Linear) else torch.randn(2, 6, 5, 5).double()
    before = model(x)
    chosen = [range(first, end) for name, first, end in FUSED if targets is None or name in targets]
    rows = [row for part in chosen for row in part]
    applied = apply(model, [fused_site(model[0])], {"lora": LoraSettings(rank=2, targets=targets)})
    operation = applied.operations[0].double()
    assert applied.counts()["adapter"] == 2 * (len(rows) + own_weight(model[0])[0].numel())
    nn.init.normal_(operation.up)
    reference = copy.deepcopy(own_weight(model[0])).data.flatten(1)
    for position, row in enumerate(rows):
        reference[row] += operation.up.data[position] @ operation.down.data
    for form in ("weight", "branch"):
        operation.changes_weight = form == "weight"
        expected = (model(x) - before).transpose(0, 1)
        assert all(
            torch.equal(expected[row], torch.zeros_like(expected[row])) for row in set(range(12)) - {*rows}
        )
        after = model(x)
    applied.merge()
    assert torch.allclose(own_weight(model[0]).flatten(1), reference, atol=1e-12)
    assert torch.allclose(model(x), after, atol=1e-12)


def test_layers_without_named_outputs_are_changed_as_a_whole_and_those_without_targets_left_out():
    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 5), nn.Linear(5, 5))
    sites = [fused_site(model[0]), site(model[1]), site(model[2])]
    sites = [copy.copy(s) for s in sites]
    for index, one in enumerate(sites):
        object.__setattr__(one, "name", str(index))
    object.__setattr__(sites[2], "splits", (("k", 0, 5),))
    settings = LoraSettings(rank=3, targets=("q",), kinds=("attention_qkv", "linear"))
    applied = apply(model, sites, {"lora": settings})
    shapes = {name: tuple(p.shape) for name, p in applied.parameters().items() if name.endswith("up")}
    assert shapes == {"0.adapters.lora.up": (4, 3), "1.adapters.lora.up": (5, 3)}


def test_a_target_that_no_layer_has_is_refused():
    model = nn.Sequential(nn.Linear(6, 12))
    with pytest.raises(UsageError, match=r"(?s)'query'.*named outputs: k, q, v"):
        apply(model, [fused_site(model[0])], {"lora": LoraSettings(targets=("query",))})
    with pytest.raises(UsageError, match=r"leave method.targets out"):
        apply(model, [site(model[0])], {"lora": LoraSettings(targets=("q",))})


def test_rslora_is_lora_with_the_other_scale():
    model = nn.Sequential(nn.Linear(8, 8))
    applied = apply(model, [site(model[0])], {"rslora": RsLoraSettings(rank=16, alpha=8)})
    assert applied.operations[0].scale == 2.0
    assert set(applied.parameters()) == {"0.adapters.rslora.down", "0.adapters.rslora.up"}
    with pytest.raises(ValidationError):
        RsLoraSettings(rank_stabilised=False)
