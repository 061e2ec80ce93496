"""Mean attention distances against a plain computation, token by token."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from segtune.config.layers import Layer, nest
from segtune.config.load import load_config
from segtune.engine import attention
from segtune.engine.attention import LayerDistance, attention_distances
from segtune.engine.fit import fit
from segtune.engine.infer import Inference, InferenceSettings
from segtune.engine.session import attention_run
from segtune.errors import UsageError
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.models.unet import UNetSettings
from segtune.report.attention import write_attention
from tests.contracts.table import make_applied, make_model
from tests.contracts.tiny_attention import NUM_HEADS, PATCH, WINDOW
from tests.support import TINY_SAM


def measure(model: SegModel, *images: Tensor) -> list[LayerDistance]:
    return attention_distances(Inference(model.eval(), InferenceSettings()), images)


def slow_mean(weights: Tensor, places: list[Any], pixels: float) -> list[float]:
    """Distances of each head; weights [heads, n, n] of tokens at places (row, column), None: no place."""
    result = []
    for head in weights.double():
        looked = []
        for q, here in enumerate(places):
            if here is None:
                continue
            known = [(float(head[q, k]), there) for k, there in enumerate(places) if there is not None]
            total = sum(weight for weight, _ in known)
            looked.append(sum(w * math.dist(here, there) * pixels for w, there in known) / total)
        result.append(sum(looked) / len(looked))
    return result


def mean_of(parts: list[tuple[list[float], int]]) -> list[float]:
    whole = sum(count for _, count in parts)
    return [sum(heads[h] * count for heads, count in parts) / whole for h in range(len(parts[0][0]))]


@torch.no_grad()
def test_tiny_attention_against_a_plain_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("attention")
    for parameter in model.parameters():
        parameter.mul_(3)  # attention that differs from an even one
    image = torch.rand(1, 3, 64, 96)
    maps = model.patches((image - model.mean) / model.std).permute(0, 2, 3, 1)  # [1, 8, 12, C]
    expected = []
    for block, side in zip(model.blocks, (WINDOW, None), strict=True):
        hidden = block.norm1(maps)[0]
        rows, columns = (side, side) if side else hidden.shape[:2]
        parts = []
        for top in range(0, hidden.shape[0], rows):
            for left in range(0, hidden.shape[1], columns):
                window = hidden[top : top + rows, left : left + columns].reshape(rows * columns, -1)
                q, k, _ = block.attention.qkv(window).view(rows * columns, 3, NUM_HEADS, -1).unbind(1)
                weights = (torch.einsum("qhc,khc->hqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
                places = [(i, j) for i in range(rows) for j in range(columns)]
                parts.append((slow_mean(weights, places, PATCH), len(places)))
        expected.append(mean_of(parts))
        maps = block(maps)
    before = model(image).logits
    found = measure(model, image)
    assert [layer.windowed for layer in found] == [True, False]
    assert [layer.block for layer in found] == [0, 1]
    for layer, heads in zip(found, expected, strict=True):
        assert layer.heads == pytest.approx(heads, rel=1e-4)
    assert torch.equal(model(image).logits, before)
    assert not model._forward_pre_hooks
    monkeypatch.setattr(attention, "MOST_ELEMENTS", 200)  # in many small pieces
    for layer, again in zip(found, measure(model, image), strict=True):
        assert layer.heads == pytest.approx(again.heads, rel=1e-5)


@torch.no_grad()
def test_sam_with_relative_positions_and_windows_beyond_the_image() -> None:
    """Maps of 4 x 6 patches in windows of 3: two rows of each lower window lie beyond the image."""
    model = make_model("sam")
    torch.manual_seed(0)
    for layer in model.vision_encoder.layers:
        layer.attn.rel_pos_h.normal_(std=0.5)
        layer.attn.rel_pos_w.normal_(std=0.5)
    image = torch.rand(1, 3, 64, 96)
    taken: list[tuple[Tensor, Tensor, Tensor]] = []
    original = F.scaled_dot_product_attention

    def spy(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any
    ) -> Tensor:
        if attn_mask is not None:
            taken.append((query, key, attn_mask))
        return original(query, key, value, attn_mask=attn_mask, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        model(image)
    found = measure(model, image)
    assert [layer.windowed for layer in found] == [True, False, True]
    assert len(taken) == 3
    for layer, (query, key, mask) in zip(found, taken, strict=True):
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + mask).softmax(-1)
        side = 3 if layer.windowed else None
        parts = []
        for number, heads in enumerate(weights):
            if side is None:
                places: list[Any] = [(i, j) for i in range(4) for j in range(6)]
            else:
                top, left = 3 * (number // 2), 3 * (number % 2)
                places = [
                    (top + i, left + j) if top + i < 4 and left + j < 6 else None
                    for i in range(3)
                    for j in range(3)
                ]
            parts.append((slow_mean(heads, places, 16), sum(place is not None for place in places)))
        assert layer.heads == pytest.approx(mean_of(parts), rel=1e-4)


class _Prefixed(torch.nn.Module):
    """A block of a plain vision transformer, with tokens in front that are no patches."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = tokens.unflatten(-1, (2, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads, heads, heads, scale=3.0)
        return self.proj(mixed.transpose(1, 2).flatten(2))


@torch.no_grad()
def test_tokens_in_front_are_left_out() -> None:
    model = make_model("attention")
    plain = _Prefixed()
    model.blocks[0] = plain
    front = torch.randn(1, 5, 16)

    def encode(images: Tensor) -> Tensor:
        maps = model.patches(images)
        tokens = torch.cat([front, maps.flatten(2).transpose(1, 2)], dim=1)
        return plain(tokens)[:, 5:].transpose(1, 2).unflatten(2, maps.shape[2:])

    model.encode_maps = encode
    image = torch.rand(1, 3, 64, 96)
    tokens = torch.cat([front, model.patches((image - model.mean) / model.std).flatten(2).transpose(1, 2)], 1)
    heads = tokens[0].unflatten(-1, (2, -1)).transpose(0, 1)
    weights = (heads @ heads.transpose(-1, -2) * 3).softmax(-1)
    places = [None] * 5 + [(i, j) for i in range(8) for j in range(12)]
    found = measure(model, image)
    assert [layer.name for layer in found] == ["blocks.0"]
    assert found[0].heads == pytest.approx(slow_mean(weights, places, 8), rel=1e-4)


@torch.no_grad()
def test_even_attention_looks_at_the_mean_distance_of_the_image() -> None:
    model = make_model("attention")
    for block in model.blocks:
        block.attention.qkv.weight.zero_()
        block.attention.qkv.bias.zero_()
    places = torch.cartesian_prod(torch.arange(8.0), torch.arange(12.0)) * 8
    whole = torch.cdist(places, places).mean().item()
    places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)) * 8
    window = torch.cdist(places, places).mean().item()
    found = measure(model, torch.rand(1, 3, 64, 96), torch.rand(1, 3, 50, 90))  # padded to the same
    assert found[0].heads == pytest.approx([window] * 2, rel=1e-5)
    assert found[1].heads == pytest.approx([whole] * 2, rel=1e-5)


def test_models_without_such_attention_are_refused() -> None:
    for model in (build_model("unet", 3, UNetSettings(depth=1, width=4)), make_model("segformer")):
        with pytest.raises(UsageError, match="scaled_dot_product_attention") as caught:
            measure(model, torch.rand(1, 3, 64, 96))
        assert "sam-vit-base" in str(caught.value)
        assert not model._forward_pre_hooks


def test_a_run_trained_by_set_matching_and_its_base(tiny_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra report")
    settings = {f"model.{name}": value for name, value in TINY_SAM.items()}
    layers = {"model": {"name": "sam-vit-base", "weights": "none"}, "method": "lora", "loss": "set_matching"}
    train = {"steps": 4, "batch_size": 2, "precision": "32", "accelerator": "cpu", "threads": 1}
    own = {
        **layers,
        "train": train,
        "optim": {"learning_rate": 0.05},
        "data": {"path": str(tiny_data)},
    }
    config = load_config([Layer("test", own), nest(settings.items(), "test")])
    result = fit(config, tmp_path / "run")
    assert result.result["steps"] == 4
    distances, num_images = attention_run(tmp_path / "run", [tiny_data / "val"], limit=1, settings={})
    assert num_images == 1
    base, tuned = distances["base"], distances["tuned"]
    assert [layer.name for layer in base] == [layer.name for layer in tuned]
    assert base[1].heads != tuned[1].heads

    out = tmp_path / "out"
    files = write_attention(distances, out, title="a run", num_images=num_images)
    assert sorted(out.iterdir()) == sorted(files)
    written = json.loads(files[0].read_text())
    assert written["tuned"][1]["heads"] == list(tuned[1].heads)
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert len(rows) == 2 * 2 * 2
    assert float(rows[-1]["pixels"]) == tuned[1].heads[-1]
    with Image.open(files[2]) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_tokens_that_a_method_adds_are_left_out_and_the_rest_is_renormalised() -> None:
    """In the first block the image's own tokens are those of the base, so their distances are too."""
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    base = measure(make_model("sam"), image)
    tuned = make_model("sam")
    make_applied(tuned, "vpt")
    found = measure(tuned, image)
    assert found[0].heads == pytest.approx(base[0].heads, rel=1e-5)
    assert [layer.name for layer in found] == [layer.name for layer in base]
