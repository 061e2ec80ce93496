"""Attention of SAM's image encoder, in which tokens beside the patches may take part."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtune.models.chunked_attention import chunked_attention, worth_chunking


class TokenPort(nn.Module):
    """A place where tokens join an attention: asked with none, [1, 0, C], it gives none back.

    A method that puts tokens here makes it give [1, n, C], the same for every image and window. It has
    no tensors of its own, so that the network's state dict does not know of it.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [1, 0, C] as they are."""
        return tokens


class WindowAttention(nn.Module):
    """Attention with relative positions, within a window or over the whole map.

    Tokens of the port are further keys and values that every window sees. They ask nothing themselves,
    as nothing is done with what would come out for them, and have no place, so that their relative
    position bias is 0. Like the patches they pass the block's norm and the layer for keys and values.

    Args:
        attention: transformers' SamVisionAttention, whose tensors are taken over.
        norm: the norm in front of it, which stays the block's own.
    """

    def __init__(self, attention: Any, norm: nn.Module) -> None:
        super().__init__()
        self.num_heads: int = attention.num_attention_heads
        self.qkv: nn.Module = attention.qkv
        self.proj: nn.Module = attention.proj
        self.rel_pos_h: nn.Parameter = attention.rel_pos_h  # [2 h0 - 1, C / heads]
        self.rel_pos_w: nn.Parameter = attention.rel_pos_w
        self.tokens = TokenPort()
        self.norms = (norm,)  # in a tuple, as it is a child of the block

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        """Normed windows [B, h, w, C] to the same shape; None stands for the weights, as in the library."""
        batch, height, width, channels = hidden_states.shape
        # Tokens first: what a layer keeps of its last call, such as a balance loss, is the patches'.
        tokens = self._project_tokens(hidden_states)
        query, key, value = self._split(self.qkv(hidden_states).flatten(1, 2))  # [B, heads, h w, C / heads]
        if tokens is not None:
            key, value = (
                torch.cat([own, added.expand(batch, -1, -1, -1)], dim=2)
                for own, added in zip((key, value), tokens, strict=True)
            )
        rows, columns = self._positions(query, height, width)
        if worth_chunking(query):
            places = rows.flatten(1, 2), columns.flatten(1, 2)
            mixed = chunked_attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), *places)
            mixed = mixed.view(query.shape)
        else:
            bias = (rows[..., :, None] + columns[..., None, :]).reshape(*query.shape[:3], -1)
            bias = F.pad(bias, (0, key.shape[2] - query.shape[2]))
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(batch, height, width, channels)
        return self.proj(mixed), None

    def _project_tokens(self, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keys and values [1, heads, n, C / heads] of the port's tokens; None without tokens."""
        tokens = self.tokens(hidden.new_empty(1, 0, hidden.shape[-1]))
        if not tokens.shape[1]:
            return None
        (norm,) = self.norms
        # A token has no neighbours: for a layer that looks at them, each is a map of one pixel.
        maps = norm(tokens).transpose(0, 1)[:, None]  # [n, 1, 1, C]
        _, key, value = self._split(self.qkv(maps).flatten(0, 2)[None])
        return key, value

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, 3 C] to queries, keys and values [B, heads, N, C / heads]."""
        parts = qkv.view(*qkv.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        return query, key, value

    def _positions(self, query: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """What a patch's place adds to its scores of each row and each column, [B heads, h, w, h or w]."""
        maps = query.reshape(-1, height, width, query.shape[3])  # [B heads, h, w, C / heads]
        rows = torch.einsum("bhwc,hkc->bhwk", maps, _relative(self.rel_pos_h, height))
        columns = torch.einsum("bhwc,wkc->bhwk", maps, _relative(self.rel_pos_w, width))
        return rows, columns


def _relative(table: Tensor, count: int) -> Tensor:
    """Embeddings [count, count, C] of distances i - j, interpolated where the table is of another size."""
    if table.shape[0] != 2 * count - 1:
        table = F.interpolate(table.T[None], size=2 * count - 1, mode="linear")[0].T
    places = torch.arange(count, device=table.device)
    return table[places[:, None] - places[None] + count - 1]
