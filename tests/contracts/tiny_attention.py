"""A plain transformer on channel-last maps, with windowed and global attention, small enough for tests."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtune.models.base import SegModel, input_spec
from segtune.models.sites import scan_sites
from segtune.types import Part, Site, SiteKind

KINDS = {"qkv": SiteKind.ATTENTION_QKV, "proj": SiteKind.ATTENTION_PROJ}
PATCH, WIDTH, NUM_HEADS, WINDOW = 8, 16, 2, 4


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, h, w, C] to the same shape."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, NUM_HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2)
        return self.proj(mixed.reshape(batch, height, width, channels))


class _Block(nn.Module):
    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = _Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, h, w, C] to the same shape."""
        hidden = self.norm1(x)
        if self.window is None:
            x = x + self.attention(hidden)
        else:
            batch, height, width, channels = x.shape
            side = self.window
            windows = hidden.view(batch, height // side, side, width // side, side, channels).transpose(2, 3)
            mixed = self.attention(windows.reshape(-1, side, side, channels))
            mixed = mixed.view(batch, height // side, width // side, side, side, channels).transpose(2, 3)
            x = x + mixed.reshape(x.shape)
        return x + self.mlp(self.norm2(x))


class TinyAttention(SegModel):
    """Patches of 8 pixels, a windowed and a global block, a 1 x 1 classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, input_spec(3, multiple=PATCH * WINDOW))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
            self.blocks = nn.ModuleList([_Block(WINDOW), _Block(None)])
            self.head = nn.Conv2d(WIDTH, num_classes, 1)

    def encode_maps(self, images: Tensor) -> Tensor:
        """Images to maps [B, C, h, w]."""
        x = self.patches(images).permute(0, 2, 3, 1).contiguous()
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2)

    def decode_maps(self, maps: Tensor, padded: tuple[int, int]) -> Tensor:
        """Maps to logits at their resolution."""
        return self.head(maps)

    def sites(self) -> tuple[Site, ...]:
        """Attention and MLP layers, norms, patch embedding, blocks."""
        sites = scan_sites(
            self,
            part=lambda _name: Part.ENCODER,
            head=self.head_names(),
            blocks=["blocks.0", "blocks.1"],
            linear_kind=lambda name: KINDS.get(name.rpartition(".")[2], SiteKind.MLP),
        )
        return tuple(replace(s, channel_axis=-1) if s.kind is SiteKind.BLOCK else s for s in sites)

    def head_names(self) -> tuple[str, ...]:
        """The classifier."""
        return ("head",)
