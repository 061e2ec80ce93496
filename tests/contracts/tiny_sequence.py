"""A plain vision transformer on a sequence of patches, small enough for tests."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtune.models.base import SegModel, input_spec
from segtune.models.sites import scan_sites
from segtune.types import Part, Site, SiteKind

KINDS = {"qkv": SiteKind.ATTENTION_QKV, "proj": SiteKind.ATTENTION_PROJ}
PATCH, WIDTH, NUM_HEADS, DEPTH = 8, 16, 2, 3


class SequenceBlock(nn.Module):
    """Attention and MLP on [B, N, C]; gives a tuple, as the blocks of some libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        """A sequence to one of the same length, and something that is none."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(2)
        x = x + self.proj(mixed)
        return x + self.mlp(self.norm2(x)), "attention weights"


class TinySequence(SegModel):
    """Patches of 8 pixels, three blocks, a 1 x 1 classifier on what comes out of the last two."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, input_spec(3, multiple=PATCH))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
            self.blocks = nn.ModuleList([SequenceBlock() for _ in range(DEPTH)])
            self.head = nn.Conv2d(2 * WIDTH, num_classes, 1)

    def encode_maps(self, images: Tensor) -> Tensor:
        """Images to maps [B, 2 C, h, w]."""
        maps = self.patches(images)
        x = maps.flatten(2).transpose(1, 2)
        outputs = []
        for block in self.blocks:
            x, _ = block(x)
            outputs.append(x.transpose(1, 2).unflatten(2, maps.shape[2:]))
        return torch.cat(outputs[-2:], dim=1)

    def decode_maps(self, maps: Tensor, padded: tuple[int, int]) -> Tensor:
        """Maps to logits at their resolution."""
        return self.head(maps)

    def sites(self) -> tuple[Site, ...]:
        """Attention and MLP layers, norms, patch embedding, blocks, where tokens may join too."""
        found = []
        for site in scan_sites(
            self,
            part=lambda _name: Part.ENCODER,
            head=self.head_names(),
            blocks=[f"blocks.{index}" for index in range(DEPTH)],
            linear_kind=lambda name: KINDS.get(name.rpartition(".")[2], SiteKind.MLP),
        ):
            if site.kind is SiteKind.BLOCK:
                block = replace(site, channel_axis=-1)
                found += [block, replace(block, name=f"{block.name}.tokens", kind=SiteKind.TOKENS)]
            else:
                found.append(site)
        return tuple(found)

    def head_names(self) -> tuple[str, ...]:
        """The classifier."""
        return ("head",)
