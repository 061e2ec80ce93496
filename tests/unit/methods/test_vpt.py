"""Trained tokens in attention, against attention written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="needs the extra hf")

from segtune.errors import NoSiteError, UsageError
from segtune.methods.apply import apply
from segtune.models.build import build_model
from segtune.types import SiteKind
from tests.contracts.table import images, logits, loss_of, make_applied, make_model, masks, parts_of


def attend(layer, x, tokens=None):
    """Attention of one window x [h, w, C], pair by pair; tokens [n, C] are in front, without a bias."""
    height, width, channels = x.shape
    heads, size = layer.num_heads, channels // layer.num_heads
    num_tokens = 0 if tokens is None else len(tokens)
    sequence = x.flatten(0, 1) if tokens is None else torch.cat([tokens, x.flatten(0, 1)])
    query, key, value = layer.qkv(sequence).unflatten(-1, (3, heads, size)).unbind(1)
    tables = [
        F.interpolate(t.T[None], size=2 * count - 1, mode="linear")[0].T
        for t, count in ((layer.rel_pos_h, height), (layer.rel_pos_w, width))
    ]
    out = torch.zeros(len(sequence), heads, size, dtype=x.dtype)
    for i in range(num_tokens, len(sequence)):
        scores = torch.einsum("nc,knc->nk", query[i], key) / size**0.5
        row, column = divmod(i - num_tokens, width)
        for j in range(num_tokens, len(sequence)):
            other_row, other_column = divmod(j - num_tokens, width)
            place = tables[0][row - other_row + height - 1] + tables[1][column - other_column + width - 1]
            scores[:, j] += query[i] @ place
        out[i] = torch.einsum("nk,knc->nc", scores.softmax(-1), value)
    return layer.proj(out[num_tokens:].reshape(height, width, channels))


def run_block(block, x, tokens, side):
    """A block on x [h, w, C], whose attention is in windows of this side."""
    normed = block.layer_norm1(x)
    prompts = block.layer_norm1(tokens)
    height, width, _ = x.shape
    padded = F.pad(normed, (0, 0, 0, -width % side, 0, -height % side))
    mixed = torch.zeros_like(padded)
    for row in range(0, padded.shape[0], side):
        for column in range(0, padded.shape[1], side):
            window = (slice(row, row + side), slice(column, column + side))
            mixed[window] = attend(block.attn, padded[window], prompts)
    x = x + mixed[:height, :width]
    return x + block.mlp(block.layer_norm2(x))


@torch.no_grad()
@pytest.mark.parametrize("method", ["vpt", "lora+vpt"])
@pytest.mark.parametrize("index", [0, 1])
def test_every_window_of_sam_sees_the_tokens(method, index):
    model = make_model("sam").double()
    applied = make_applied(model, method, num_tokens=5)
    for parameter in applied.parameters().values():
        parameter.data = parameter.data.double() + 0.3 * torch.randn(parameter.shape).double()
    block = model.vision_encoder.layers[index]
    for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
        table.normal_()
    tokens = block.attn.tokens.adapters["vpt"].tokens
    x = torch.randn(4, 5, 32).double()
    expected = run_block(block, x, tokens, side=3 if index == 0 else 5)
    if index == 1:  # the whole map: its sides are not equal
        normed, prompts = block.layer_norm1(x), block.layer_norm1(tokens)
        expected = x + attend(block.attn, normed, prompts)
        expected = expected + block.mlp(block.layer_norm2(expected))
    assert torch.allclose(block(x[None])[0], expected, atol=1e-10)
    bare = make_model("sam").double().vision_encoder.layers[index]
    assert not torch.allclose(block(x[None])[0], bare(x[None])[0], atol=1e-2)


@torch.no_grad()
def test_the_network_without_tokens_has_the_keys_and_values_it_had():
    model = make_model("sam")
    keys, before = list(model.state_dict()), logits(model)
    applied = make_applied(model, "vpt")
    assert not torch.equal(logits(model), before)
    applied.remove()
    assert list(model.state_dict()) == keys
    assert torch.equal(logits(model), before)


def sequence_output(model, x, tokens_of, carried):
    """TinySequence with tokens, written out: those of a block enter it, or what the last made of its own."""
    maps = model.patches((x - model.mean) / model.std)
    x = maps.flatten(2).transpose(1, 2)
    outputs, passed = [], None
    for index, block in enumerate(model.blocks):
        tokens = passed if carried and passed is not None else tokens_of(index).expand(len(x), -1, -1)
        forward = type(block).adapted_class.forward  # without what is attached
        y, _ = forward(block, torch.cat([tokens, x], dim=1))
        passed, x = y[:, : tokens.shape[1]], y[:, tokens.shape[1] :]
        outputs.append(x.transpose(1, 2).unflatten(2, maps.shape[2:]))
    return model.head(torch.cat(outputs[-2:], dim=1))


@torch.no_grad()
@pytest.mark.parametrize("form", ["deep", "shallow"])
def test_tokens_of_a_sequence(form):
    model = make_model("sequence")
    applied = make_applied(model, "vpt", num_tokens=4, form=form)
    assert len(applied.operations) == 3
    assert applied.counts()["adapter"] == 4 * 16 * (3 if form == "deep" else 1)
    operations = [block.adapters["vpt"] for block in model.blocks]
    x = torch.rand(2, 3, 64, 96)
    expected = sequence_output(model, x, lambda i: operations[i].tokens, carried=form == "shallow")
    found = model.decode_maps(model.encode(x).maps, (64, 96))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("form", ["deep", "shallow"])
def test_gradients_are_those_of_checkpointing_every_block(form):
    gradients = []
    for checkpointed in (False, True):
        model = make_model("sequence")
        applied = make_applied(model, "vpt", form=form)
        if checkpointed:
            for block in model.blocks:
                plain = block.forward
                block.forward = lambda x, plain=plain: torch.utils.checkpoint.checkpoint(
                    plain, x, use_reentrant=False
                )
        loss_of(model, images(), masks()).backward()
        gradients.append([p.grad for p in applied.parameters().values()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_only_the_last_blocks_get_tokens():
    applied = make_applied(make_model("sam"), "vpt", last_blocks=2)
    assert [site.block for site in applied.sites if site.kind is SiteKind.TOKENS] == [1, 2]


def test_shallow_tokens_in_windows_are_refused():
    model = make_model("sam")
    keys = list(model.state_dict())
    with pytest.raises(NoSiteError, match="differs from window to window") as caught:
        apply(model, model.sites(), parts_of("vpt", form="shallow"))
    assert "form=deep" in caught.value.hint
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", ["unet", "segformer"])
def test_a_network_without_a_place_for_tokens_is_refused(name):
    model = make_model(name)
    with pytest.raises(NoSiteError, match="vpt attaches to tokens"):
        apply(model, model.sites(), parts_of("vpt"))


@pytest.mark.parametrize("form", ["deep", "shallow"])
def test_vision_transformers_of_smp_take_tokens(form):
    model = build_model("smp:dpt/tu-vit_tiny_patch16_224", 2).eval()
    before = logits(model, torch.rand(1, 3, 64, 96))
    applied = apply(model, model.sites(), parts_of("vpt", form=form), unused=model.unused)
    assert applied.counts()["adapter"] == 12 * 192 * (12 if form == "deep" else 1)
    after = logits(model, torch.rand(1, 3, 64, 96))
    assert after.shape == before.shape


def test_experts_do_not_convolve_a_sequence_with_tokens():
    model = make_model("sequence")
    make_applied(model, "conv-lora+vpt")
    with pytest.raises(UsageError, match="lie on no grid"):
        model(images())
