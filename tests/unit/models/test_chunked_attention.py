"""Attention in chunks against PyTorch's, with its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segtune.models import chunked_attention as module
from segtune.models.chunked_attention import chunked_attention, worth_chunking


def reference(query, key, value, rows, columns):
    """The same with all scores at once."""
    places = query.shape[1]
    bias = (rows[..., :, None] + columns[..., None, :]).reshape(*query.shape[:2], places)
    bias = F.pad(bias, (0, key.shape[1] - places))
    return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=bias[None])[0]


@pytest.mark.parametrize("chunk", [1, 40, 400, 2**19])
@pytest.mark.parametrize("added", [0, 2])
def test_output_and_gradients_are_those_of_all_scores_at_once(chunk, added, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    height, width = 3, 5
    places = height * width
    shapes = [
        (4, places, 8),
        (4, places + added, 8),
        (4, places + added, 8),
        (4, places, height),
        (4, places, width),
    ]
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    weights = torch.randn(4, places, 8, generator=generator)
    expected, got = reference(*inputs), chunked_attention(*inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    found = torch.autograd.grad((got * weights).sum(), inputs)
    for one, other in zip((got, *found), (expected, *wanted), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_autocast_does_not_round_scores():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 6, 8, generator=generator).bfloat16() for _ in range(3))
    rows, columns = (100 * torch.randn(2, 6, size, generator=generator).bfloat16() for size in (2, 3))
    plain = chunked_attention(query, key, value, rows, columns)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(chunked_attention(query, key, value, rows, columns), plain)
    expected = reference(*(x.float() for x in (query, key, value, rows, columns)))
    assert torch.allclose(plain.float(), expected, atol=0.02)


def test_only_training_on_a_cpu_is_chunked():
    query = torch.empty(1)
    assert worth_chunking(query)
    assert not worth_chunking(query.to("meta"))
    with torch.no_grad():
        assert not worth_chunking(query)
