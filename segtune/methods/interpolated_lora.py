"""Learned mixture of a layer's weight and a low-rank one (PETRAS).

What it changes
    A layer's weight becomes `a W0 + (1 - a) s B A` with a trained number `a` for each layer and B = 0 at the
    start. Biases stay as they are.

    The start is a choice. The gradient of B is proportional to `1 - a`, so `start=1` would give the
    base and leave B and A dead: it is refused. The default, 1 - 1e-6, shrinks each layer's weight by
    one part in a million: outputs are close to the base's, not equal. B then matters next to nothing
    until `a` has moved, which its own gradient does within the first steps. A smaller start, such as
    0.99, lets B learn at once, and is the further away from the base the deeper the network is.

Where it attaches
    Linear, Conv2d and ConvTranspose2d layers in any form. With `targets`, only those outputs of a fused
    layer are mixed.

Parameters
    Those of `lora`, and 1 for each layer.

When to use it
    To compare with PETRAS. It runs on the changed weight everywhere, so that a step takes longer than one of
    `lora` on linear layers. Merges.

Source
    PETRAS (parameter-efficient tuning of SAM for aerial vegetation): interpolated LoRA. It names no
    start for `a`; the default here is ours.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from segtune.methods.attach import Order, full_precision, own_weight
from segtune.methods.layers import OutputChannels, Ranges, spread, width_of
from segtune.methods.lora import LoraOperation, LowRank, LowRankSettings
from segtune.types import Site


class InterpolatedLoraSettings(LowRankSettings):
    """Settings of `interpolated-lora`."""

    start: float = Field(
        1 - 1e-6, ge=0, lt=1, description="first value of a, the share of the base; at 1 nothing would learn"
    )


class InterpolatedLoraOperation(LoraOperation):
    """`a W0 + (1 - a) s B A` on one layer.

    Args:
        layer: nn.Linear, nn.Conv2d or nn.ConvTranspose2d, or a subclass.
        rank: r.
        scale: s.
        start: first value of a.
        ranges: of the outputs that are changed; default: all.
    """

    def __init__(
        self, layer: nn.Module, *, rank: int, scale: float, start: float, ranges: Ranges | None
    ) -> None:
        super().__init__(layer, rank=rank, scale=scale, form="weight", ranges=ranges)
        self.channels = OutputChannels.of(layer)
        self.share = nn.Parameter(torch.tensor(start))  # a

    @property
    def order(self) -> Order:
        """Before sums, which would otherwise be shrunk or not, by their form."""
        return Order.REPLACES_WEIGHT

    def weight(self, weight: Tensor) -> Tensor:
        """`a W0 + (1 - a) s B A`."""
        with full_precision(weight.device):
            base = weight.to(torch.promote_types(weight.dtype, self.up.dtype))
            change = self.delta(base.shape) - self._chosen(base)
            return (base + (1 - self.share) * change).to(weight.dtype)

    def _chosen(self, weight: Tensor) -> Tensor:
        """The weight with zeros for the outputs that are not mixed."""
        if width_of(self.ranges) == self.rows:
            return weight
        chosen = spread(weight.new_ones(width_of(self.ranges)), self.ranges, self.channels.num, 0.0)
        return self.channels.scaled(weight, chosen)

    def fold(self, layer: nn.Module) -> None:
        """Writes the mixture into the layer's weight."""
        weight = own_weight(layer)
        weight.copy_(self.weight(weight))


class InterpolatedLora(LowRank):
    """Interpolated LoRA on linear and convolution layers."""

    settings: InterpolatedLoraSettings
    name = "interpolated-lora"
    starts_as_base = False

    def operation(self, site: Site) -> InterpolatedLoraOperation:
        """An `InterpolatedLoraOperation`."""
        return InterpolatedLoraOperation(
            site.module,
            rank=self.settings.rank,
            scale=self.scale,
            start=self.settings.start,
            ranges=self.ranges(site),
        )

    def num_parameters(self, site: Site) -> int:
        """Those of the factors, and one."""
        return super().num_parameters(site) + 1
