"""The side network against its formula, and what it keeps in memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("transformers", reason="needs the extra hf")

from segtune.errors import UsageError
from segtune.methods.apply import apply
from segtune.methods.lst import _spaced
from segtune.models import MODELS
from segtune.models.build import build_model
from segtune.types import Part, Site, SiteKind
from tests.contracts.table import images, logits, loss_of, make_applied, make_model, masks, parts_of


def attend(block, x):
    """Attention of a side block on one sequence [N, d], head by head."""
    query, key, value = block.qkv(x).chunk(3, dim=-1)
    size = x.shape[1] // block.num_heads
    parts = []
    for head in range(block.num_heads):
        own = slice(head * size, (head + 1) * size)
        scores = query[:, own] @ key[:, own].T / size**0.5
        parts.append(scores.softmax(-1) @ value[:, own])
    return block.proj(torch.cat(parts, dim=-1))


def rms(norm, x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def run_ladder(operations, outputs):
    """The formula for one image: what comes out of each block as [N, C] -> what is added to the last."""
    state = torch.zeros(len(outputs[0]), operations[0].down.shape[0]).double()
    for operation, h in zip(operations, outputs, strict=True):
        openness = 1 / (1 + (-operation.gate / 0.1).exp())
        state = openness * h @ operation.down.T + (1 - openness) * state
        if operation.side_block is not None:
            block = operation.side_block
            state = state + attend(block, rms(block.norm1, state))
            state = state + block.lin2(F.gelu(block.lin1(rms(block.norm2, state))))
    last = operations[-1]
    return rms(last.norm, state) @ last.up.T


@torch.no_grad()
@pytest.mark.parametrize("name", ["sam", "attention", "sequence"])
@pytest.mark.parametrize("num_side_blocks", [0, 2, 4])
def test_the_ladder_is_its_formula(name, num_side_blocks):
    model = make_model(name).double()
    applied = make_applied(model, "lst", num_side_blocks=num_side_blocks, width=12)
    blocks = [site for site in applied.sites if site.kind is SiteKind.BLOCK]
    for parameter in applied.parameters().values():
        parameter.data = parameter.data.double() + 0.3 * torch.randn(parameter.shape).double()
    outputs = []
    last = blocks[-1].module
    operations = [site.module.adapters["lst"] for site in blocks]
    plain = last.adapters["lst"].after

    def after(layer, x, y):
        outputs.append(y[0] if isinstance(y, tuple) else y)
        changed = plain(layer, x, y)
        outputs.append(changed[0] if isinstance(changed, tuple) else changed)
        return changed

    last.adapters["lst"].after = after
    hooks = [
        site.module.register_forward_hook(
            lambda module, x, y: outputs.append(y[0] if isinstance(y, tuple) else y)
        )
        for site in blocks[:-1]
    ]
    model(images(1).double())
    for hook in hooks:
        hook.remove()
    *below, own, changed = (y[0].flatten(0, -2) for y in outputs)
    expected = run_ladder(operations, [*below, own])
    assert expected.abs().max() > 0.1
    assert torch.allclose(changed - own, expected, atol=1e-8)


def build_sam(depth, *, checkpointing=False):
    settings = MODELS.settings("sam-vit-base")(
        width=32,
        depth=depth,
        heads=2,
        global_blocks=tuple(range(depth)),
        image_size=64,
        decoder_width=16,
        checkpointing=checkpointing,
    )
    return build_model("sam-vit-base", 2, settings)


def kept_bytes(depth, method, **settings):
    """Bytes that autograd keeps for the backward pass, without parameters and constants."""
    model = build_sam(depth)
    applied = apply(model, model.sites(), parts_of(method, **settings), unused=model.unused)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.rand(1, 3, 64, 96)).logits.square().mean()
    loss.backward()
    assert all(p.grad is not None for p in applied.parameters().values())
    return sum(size for size, _ in kept.values())


def test_what_is_kept_does_not_grow_with_the_base():
    shallow, deep = (kept_bytes(depth, "lst", num_taps=2) for depth in (2, 8))
    assert shallow == deep
    per_rung = 4 * 6 * 32 * 4  # h of 4 x 6 places and 32 channels; low, gated and mixed states come on top
    assert per_rung <= (kept_bytes(8, "lst", num_side_blocks=2) - deep) / 6 < 3 * per_rung
    assert kept_bytes(8, "lora") > 2 * kept_bytes(2, "lora") > 2 * shallow - 2 * kept_bytes(2, "head")


@pytest.mark.parametrize("name", ["sam", "attention", "sequence", "unet", "deeplabv3", "segformer"])
def test_no_gradient_enters_the_base(name):
    model = make_model(name)
    applied = make_applied(model, "lst")
    blocks = [site.module for site in applied.sites if site.kind is SiteKind.BLOCK]
    entered = []
    for block in blocks:
        block.register_forward_pre_hook(lambda module, args: entered.append(args[0].requires_grad))
    model.train()
    loss_of(model, images(), masks()).backward()
    assert entered == [False] * len(blocks)
    assert all(p.grad is not None for p in applied.parameters().values())


def test_gradients_are_those_of_checkpointing_every_block():
    gradients = []
    for checkpointing in (False, True):
        model = build_sam(3, checkpointing=checkpointing)
        applied = apply(model, model.sites(), parts_of("lst+lora"), unused=model.unused)
        for parameter in applied.parameters().values():
            parameter.data.add_(0.01)
        model(images()).logits.square().mean().backward()
        gradients.append([p.grad for p in applied.parameters().values()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_large_maps_are_averaged():
    model = make_model("unet")
    applied = make_applied(model, "lst", max_tokens=24)
    last = [site for site in applied.sites if site.kind is SiteKind.BLOCK][-1].module.adapters["lst"]
    model(images())
    assert last.kept.shape[2:] == (4, 6)  # of 64 x 96
    last.up.data.normal_()
    before = logits(make_model("unet"))
    assert logits(model).shape == before.shape
    assert not torch.allclose(logits(model), before, atol=1e-2)


def test_nothing_is_kept_without_gradients():
    model = make_model("sam")
    applied = make_applied(model, "lst")
    logits(model)
    assert [operation.kept for operation in applied.operations] == [None] * 3


def test_rungs_are_evenly_spaced():
    assert _spaced(32, 4) == [7, 15, 23, 31]
    assert _spaced(5, 2) == [1, 4]
    assert _spaced(3, 8) == [0, 1, 2]
    assert _spaced(3, 0) == []
    applied = make_applied(make_model("sam"), "lst", num_taps=2)
    assert [site.block for site in applied.sites if site.kind is SiteKind.BLOCK] == [0, 2]


def test_sequences_of_several_lengths_are_refused():
    class Halves(nn.Module):
        def forward(self, x):
            return x[:, ::2]

    model = nn.Sequential(nn.Linear(4, 4), Halves(), Halves())
    sites = [
        Site(
            name=str(i), kind=SiteKind.BLOCK, module=model[i], part=Part.ENCODER, channel_axis=-1, channels=4
        )
        for i in (1, 2)
    ]
    apply(model, sites, parts_of("lst"))
    with pytest.raises(UsageError, match=r"several lengths .*4 x 4, 8 x 4"):
        model(torch.rand(1, 16, 4))
