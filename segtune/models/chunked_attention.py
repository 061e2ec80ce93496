"""Attention with relative positions on a CPU, chunk by chunk: scores of all queries never exist at once.

What autograd would keep of `softmax(q k^T + rows + columns) v` are several maps of h w x h w numbers for
each head, and passing through them again and again is most of the time. Here a chunk of scores
small enough for the processor's cache is made, used and forgotten; the backward pass makes it anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

CHUNK = 2**19
"""Scores that are made at once: 2 MiB of float32."""
STANDS_FOR: ContextVar[int] = ContextVar("STANDS_FOR", default=1)
"""Operations that one stands for: an estimate's tensors without data pass through two chunks only."""


def chunked_attention(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Scaled dot-product attention among the places of a map, with decomposed relative positions.

    Scores and their gradients are float32; as in fused kernels, what is multiplied with values, queries
    and keys is rounded to their type.

    Args:
        query: [N, h w, C], N maps times heads.
        key: [N, M, C]; the first h w of the M keys are those of the map, others have no position.
        value: [N, M, C].
        rows: [N, h w, h], what is added to a query's scores of the keys of each row.
        columns: [N, h w, w], the same for columns.

    Returns:
        [N, h w, C].
    """
    with torch.autocast(query.device.type, enabled=False):
        mixed: Tensor = _Attention.apply(query, key, value, rows, columns)
    return mixed


def worth_chunking(query: Tensor) -> bool:
    """Whether attention is to be computed in chunks: in training on a CPU.

    Nothing is kept for a backward pass otherwise. On a GPU fused kernels do the same; a compiled program
    fuses by itself. Where there is a GPU, an estimate's tensors without data stand for those on it.
    """
    return (
        torch.is_grad_enabled()
        and query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not (isinstance(query, FakeTensor) and torch.cuda.is_available())
    )


def _chunks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Parts of the maps, or of the queries of one map, whose scores are as many as `CHUNK` at most."""
    parts = list(_parts(len(query), query.shape[1], key.shape[1]))
    if not isinstance(query, FakeTensor) or len(parts) < 2:
        yield from parts
        return
    yield parts[0]
    STANDS_FOR.set(len(parts) - 1)
    try:
        yield parts[1]
    finally:
        STANDS_FOR.set(1)


def _parts(num_maps: int, num_queries: int, num_keys: int) -> Iterator[tuple[slice, slice]]:
    maps = max(1, min(num_maps, CHUNK // (num_queries * num_keys)))
    queries = num_queries if maps > 1 else max(1, min(num_queries, CHUNK // num_keys))
    for first in range(0, num_maps, maps):
        for begin in range(0, num_queries, queries):
            yield slice(first, first + maps), slice(begin, begin + queries)


def _probabilities(query: Tensor, key: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Softmax of the scores of a chunk, float32 [n, q, M]."""
    scale: float = query.shape[-1] ** -0.5
    scores = torch.bmm(query.float() * scale, key.float().transpose(1, 2))
    count, queries, height, width = *rows.shape, columns.shape[2]
    own = scores[..., : height * width].view(count, queries, height, width)
    own.add_(rows[..., :, None]).add_(columns[..., None, :])
    return torch.softmax(scores, dim=-1)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value, rows, columns)
        mixed = torch.empty_like(query)
        for maps, part in _chunks(query, key):
            weights = _probabilities(query[maps, part], key[maps], rows[maps, part], columns[maps, part])
            mixed[maps, part] = torch.bmm(weights.to(value.dtype), value[maps])
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        query, key, value, rows, columns = ctx.saved_tensors
        scale: float = query.shape[-1] ** -0.5
        height, width = rows.shape[2], columns.shape[2]
        grad_query, grad_rows, grad_columns = map(torch.empty_like, (query, rows, columns))
        grad_key = torch.zeros_like(key, dtype=torch.float32)
        grad_value = torch.zeros_like(value, dtype=torch.float32)
        for maps, part in _chunks(query, key):
            weights = _probabilities(query[maps, part], key[maps], rows[maps, part], columns[maps, part])
            above = grad[maps, part]
            grad_value[maps] += torch.bmm(weights.to(above.dtype).transpose(1, 2), above)
            scores = torch.bmm(above.float(), value[maps].float().transpose(1, 2))
            scores.mul_(weights)  # of a softmax: w (g - sum of w g)
            scores.addcmul_(weights, scores.sum(dim=-1, keepdim=True), value=-1)
            own = scores[..., : height * width].view(*scores.shape[:2], height, width)
            grad_rows[maps, part] = own.sum(dim=-1)
            grad_columns[maps, part] = own.sum(dim=-2)
            small = scores.to(query.dtype)
            grad_query[maps, part] = torch.bmm(small, key[maps]).mul_(scale)
            grad_key[maps] += torch.bmm(small.transpose(1, 2), query[maps, part])
        grad_key = grad_key.mul_(scale).to(key.dtype)
        return grad_query, grad_key, grad_value.to(value.dtype), grad_rows, grad_columns
