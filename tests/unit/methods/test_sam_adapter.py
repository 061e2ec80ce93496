"""Prompts from high frequencies and the patch embedding, against a slow reference."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
import torch.nn.functional as F

from segtune.errors import NoSiteError
from segtune.methods.apply import apply
from segtune.methods.sam_adapter import high_frequencies
from segtune.types import SiteKind
from tests.contracts.table import logits, make_applied, make_model, parts_of


def slow_high_frequencies(image, ratio):
    """The definition for one channel [H, W], sum by sum."""
    height, width = image.shape
    reach = int(math.sqrt(height * width * ratio) / 2)
    out = torch.zeros(height, width, dtype=torch.complex128)
    for u in range(-(height // 2), (height + 1) // 2):
        for v in range(-(width // 2), (width + 1) // 2):
            if -reach <= u < reach and -reach <= v < reach:
                continue
            waves = torch.tensor(
                [
                    [cmath.exp(2j * math.pi * (u * y / height + v * x / width)) for x in range(width)]
                    for y in range(height)
                ]
            )
            out += (image * waves.conj()).sum() / (height * width) * waves
    return out.real.abs()


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 5)])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.9])
def test_high_frequencies_are_those_of_the_definition(size, ratio):
    images = torch.rand(1, 2, *size).double()
    found = high_frequencies(images, ratio)
    for channel in range(2):
        assert torch.allclose(found[0, channel], slow_high_frequencies(images[0, channel], ratio), atol=1e-6)


def test_a_smooth_image_has_none():
    ramp = torch.linspace(0, 2 * math.pi, 33)[:32].sin().expand(1, 1, 32, 32)
    assert high_frequencies(ramp, 0.25).max() < 1e-6
    assert high_frequencies(ramp, 0.0).max() > 0.9


@torch.no_grad()
@pytest.mark.parametrize("name", ["sam", "attention", "sequence"])
def test_what_a_block_gets(name):
    model = make_model(name)
    applied = make_applied(model, "sam-adapter", reduction=4)
    for parameter in applied.parameters().values():
        parameter.add_(0.2 * torch.randn_like(parameter))
    patches, *blocks = [s for s in applied.sites if s.kind in (SiteKind.BLOCK, SiteKind.CONV)]
    source, layer = patches.module.adapters["sam-adapter"], patches.module
    entered, expected = [], []
    x = torch.rand(2, 3, 64, 96)
    pixels = (x - model.mean) / model.std
    side = layer.kernel_size[0]
    embedding = F.conv2d(pixels, layer.weight, layer.bias, stride=side)
    cut = F.conv2d(high_frequencies(pixels, 0.25), source.patches, source.patches_bias, stride=side)
    f = cut + F.conv2d(embedding, source.embedding[:, :, None, None], source.embedding_bias)
    for site in blocks:
        own = site.module.adapters["sam-adapter"]
        hidden = F.gelu(F.conv2d(f, own.mix[:, :, None, None], own.mix_bias))
        prompt = F.conv2d(hidden, source.up[:, :, None, None], source.up_bias)
        expected.append(prompt.permute(0, 2, 3, 1).flatten(1, 2))
        plain = own.before

        def before(x, plain=plain):
            y = plain(x)
            entered.append((y - x).reshape(len(x), -1, x.shape[-1]))
            return y

        own.before = before
    model(x)
    assert len(entered) == len(blocks) > 1
    for got, wanted in zip(entered, expected, strict=True):
        assert torch.allclose(got, wanted, atol=1e-4)


def test_further_tokens_in_front_get_nothing():
    model = make_model("sequence")
    applied = make_applied(model, "sam-adapter+vpt", num_tokens=2)
    assert applied.counts()["adapter"] == applied.counts()["trainable"] - applied.counts()["head"]
    for operation in applied.operations:
        for parameter in operation.parameters():
            parameter.data.fill_(0.1)
    block = model.blocks[0]
    model(torch.rand(1, 3, 64, 96))
    prompt = block.adapters["sam-adapter"]
    before = torch.zeros(1, 98, 16)
    added = prompt.before(before)
    assert added[:, :2].abs().max() == 0
    assert (added[:, 2:].abs() > 0).all()


@pytest.mark.parametrize("name", ["unet", "deeplabv3", "segformer"])
def test_networks_without_patches_are_refused(name):
    model = make_model(name)
    before = logits(model)
    with pytest.raises(NoSiteError, match="needs a patch embedding"):
        apply(model, model.sites(), parts_of("sam-adapter"), unused=model.unused)
    assert torch.equal(logits(model), before)
