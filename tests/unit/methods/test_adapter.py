"""Bottleneck adapters: where they stand, and what they compute."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segtune.errors import MergeError, NoSiteError, UsageError
from segtune.methods.adapter import AdapterSettings
from segtune.methods.apply import apply
from segtune.types import Access, Part, Site, SiteKind


class Mlp(nn.Module):
    """Norm and two linear layers with a residual, as in a transformer's block."""

    def __init__(self, inputs=4, outputs=4):
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, 9)
        self.fc2 = nn.Linear(9, outputs)

    def mlp(self, x):
        return self.fc2(F.gelu(self.fc1(self.norm(x))))

    def forward(self, x):
        return x + self.mlp(x) if self.fc2.out_features == x.shape[-1] else self.mlp(x)


def sites_of(block, access=Access.CALL):
    common = {"part": Part.ENCODER, "channel_axis": -1, "block": 0}
    return [
        Site(name="0", kind=SiteKind.BLOCK, module=block, channels=4, **common),
        Site(name="0.fc1", kind=SiteKind.MLP, module=block.fc1, **common),
        Site(name="0.fc2", kind=SiteKind.MLP, module=block.fc2, access=access, **common),
    ]


def adapted(settings, block=None):
    torch.manual_seed(0)
    model = nn.Sequential(block or Mlp()).double()
    applied = apply(model, sites_of(model[0]), {"adapter": settings})
    model.double()
    for parameter in applied.parameters().values():
        nn.init.normal_(parameter)
    return model, applied, applied.operations[-1]


@pytest.mark.parametrize("biases", [False, True])
def test_houlsby_stands_behind_the_mlp(biases):
    model, applied, operation = adapted(AdapterSettings(width=3, biases=biases))
    assert [site.name for site in applied.sites] == ["0.fc2"]
    assert applied.counts()["adapter"] == 2 * 4 * 3 + (7 if biases else 0)
    x = torch.randn(2, 5, 4).double()
    clean = copy.deepcopy(model)
    applied_state = {name: p.clone() for name, p in applied.parameters().items()}
    y = model(x)
    applied.remove()
    hidden = model[0].mlp(x)
    low = hidden @ operation.down.T + (operation.down_bias if biases else 0)
    expected = x + hidden + F.gelu(low) @ operation.up.T + (operation.up_bias if biases else 0)
    assert torch.allclose(y, expected, atol=1e-12)
    assert torch.allclose(clean(x), y) and applied_state


def test_adaptformer_stands_beside_the_mlp_and_reads_its_input():
    model, applied, operation = adapted(AdapterSettings(form="parallel", width=3))
    assert [site.name for site in applied.sites] == ["0.fc2"]
    assert applied.counts()["adapter"] == 2 * 4 * 3
    x = torch.randn(2, 5, 4).double()
    y = model(x)
    twin = pickle.loads(pickle.dumps(model))  # the tap is still that of the twin's own first layer
    assert torch.equal(twin(x), y) and torch.equal(copy.deepcopy(model)(2 * x), model(2 * x))
    applied.remove()
    inputs = model[0].norm(x)
    expected = x + model[0].mlp(x) + 0.1 * F.relu(inputs @ operation.down.T) @ operation.up.T
    assert torch.allclose(y, expected, atol=1e-12)


def test_the_parallel_form_compiles_and_works_with_activation_checkpointing():
    model, applied, _ = adapted(AdapterSettings(form="parallel"))
    x = torch.randn(2, 5, 4).double()
    parameters = list(applied.parameters().values())
    expected = torch.autograd.grad(model(x).square().sum(), parameters)
    again = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    got = torch.autograd.grad(again.square().sum(), parameters)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got_compiled = torch.autograd.grad(compiled(x).square().sum(), parameters)
    for one, two, three in zip(expected, got, got_compiled, strict=True):
        assert torch.equal(one, two) and torch.allclose(one, three)


@pytest.mark.parametrize(("axis", "shape"), [(1, (2, 4, 6, 5)), (-1, (2, 6, 5, 4))])
def test_blocks_without_an_mlp_get_theirs_at_the_end(axis, shape):
    def forward_of(layer):
        return nn.Conv2d(4, 4, 1) if layer == 1 else nn.Linear(4, 4)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(forward_of(axis), nn.ReLU()), nn.Tanh()).double()
    block = Site(
        name="0", kind=SiteKind.BLOCK, module=model[0], part=Part.ENCODER, channels=4, channel_axis=axis
    )
    x = torch.randn(shape).double()
    clean = copy.deepcopy(model)
    applied = apply(model, [block], {"adapter": AdapterSettings(width=2)})
    assert len(model[0]) == 2 and [type(layer).__name__ for layer in model[0]][1] == "ReLU"
    assert torch.equal(model(x), clean(x)), "at the start"
    model.double()
    operation = applied.operations[0]
    nn.init.normal_(operation.up)
    y = clean[0](x).movedim(axis, -1)
    y = y + F.gelu(y @ operation.down.T) @ operation.up.T
    assert torch.allclose(model(x), clean[1](y.movedim(-1, axis)), atol=1e-12)
    assert list(clean.state_dict()) == [name for name in model.state_dict() if "adapters" not in name]
    applied.remove()
    assert type(model[0]) is nn.Sequential


def test_it_says_why_it_cannot_be_merged():
    _, applied, _ = adapted(AdapterSettings())
    with pytest.raises(MergeError, match="non-linear bottleneck"):
        applied.merge()


def test_layers_that_are_not_called_are_left_out():
    block = Mlp()
    with pytest.raises(NoSiteError):
        apply(block, sites_of(block, Access.WEIGHT), {"adapter": AdapterSettings()})


def test_the_parallel_form_needs_as_many_inputs_as_outputs():
    block = Mlp(inputs=5)
    with pytest.raises(UsageError, match="takes 5 channels and gives 4"):
        apply(block, sites_of(block), {"adapter": AdapterSettings(form="parallel")})
    assert type(block.fc1) is nn.Linear
