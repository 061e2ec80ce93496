"""Low-rank change of a weight's directions, with a learned length for each output channel (DoRA).

What it changes
    A layer's weight becomes `m V / |V|` with `V = W0 + s B A` and one length `|V|` for each output channel.
    B = 0 and `m = |W0|` at the start, so that the model starts as the base, bit for bit: what is trained
    is `m - |W0|`, and both lengths are computed alike. As in the paper, no gradient passes through `|V|`.

Where it attaches
    Linear, Conv2d and ConvTranspose2d layers in any form. With `targets`, only those outputs of a fused
    layer have a length of their own.

Parameters
    Those of `lora`, and one for each output channel: Linear and Conv2d O, ConvTranspose2d O.

When to use it
    Where `lora` stays behind full tuning at small ranks. It runs on the changed weight everywhere, so
    that a step takes longer than one of `lora` on linear layers. Merges.

Source
    Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024, sections 4.2 and 4.3. Lengths are those
    of output channels, for convolutions too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segtune.methods.attach import Order, full_precision, own_weight
from segtune.methods.layers import OutputChannels, Ranges, spread, width_of
from segtune.methods.lora import LoraOperation, LowRank, LowRankSettings
from segtune.types import Site

SHORTEST = 1e-6
"""Shorter channels count as this long, so that a channel of zeros can be divided by its length."""


class DoraSettings(LowRankSettings):
    """Settings of `dora`."""


class DoraOperation(LoraOperation):
    """`m V / |V|` with `V = W0 + s B A` on one layer.

    Args:
        layer: nn.Linear, nn.Conv2d or nn.ConvTranspose2d, or a subclass.
        rank: r.
        scale: s.
        ranges: of the outputs that are changed; default: all.
    """

    def __init__(self, layer: nn.Module, *, rank: int, scale: float, ranges: Ranges | None) -> None:
        super().__init__(layer, rank=rank, scale=scale, form="weight", ranges=ranges)
        self.channels = OutputChannels.of(layer)
        self.lengthened = ((0, self.channels.num),) if ranges is None else tuple(ranges)
        self.magnitude = nn.Parameter(torch.zeros(width_of(self.lengthened)))

    @property
    def order(self) -> Order:
        """Before sums, which would otherwise change the direction or not, by their form."""
        return Order.REPLACES_WEIGHT

    def weight(self, weight: Tensor) -> Tensor:
        """`m V / |V|`."""
        with full_precision(weight.device):
            base = weight.to(torch.promote_types(weight.dtype, self.up.dtype))
            changed = base + self.delta(base.shape)
            length = self.lengths(base)
            ratio = length / self._lengths(changed.detach())
            if width_of(self.lengthened) < self.channels.num:
                chosen = spread(torch.ones_like(self.magnitude), self.lengthened, self.channels.num, 0.0)
                ratio = torch.where(chosen.bool(), ratio, torch.ones_like(ratio))
            return self.channels.scaled(changed, ratio).to(weight.dtype)

    def lengths(self, weight: Tensor) -> Tensor:
        """`m` [O], for the layer's own weight."""
        return self._lengths(weight) + spread(self.magnitude, self.lengthened, self.channels.num, 0.0)

    def _lengths(self, weight: Tensor) -> Tensor:
        # rows copies into one layout of memory, in which equal weights have lengths of equal bits
        rows = self.channels.rows(weight).contiguous()
        lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
        return lengths.clamp_min(SHORTEST)

    def fold(self, layer: nn.Module) -> None:
        """Writes the changed weight into the layer."""
        weight = own_weight(layer)
        weight.copy_(self.weight(weight))


class Dora(LowRank):
    """DoRA on linear and convolution layers."""

    settings: DoraSettings
    name = "dora"

    def operation(self, site: Site) -> DoraOperation:
        """A `DoraOperation`."""
        return DoraOperation(site.module, rank=self.settings.rank, scale=self.scale, ranges=self.ranges(site))

    def num_parameters(self, site: Site) -> int:
        """Those of the factors, and one for each output channel that is changed."""
        ranges = self.ranges(site)
        lengths = OutputChannels.of(site.module).num if ranges is None else width_of(ranges)
        return super().num_parameters(site) + lengths
