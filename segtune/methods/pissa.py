"""LoRA that starts from the weight's largest singular vectors (PiSSA).

What it changes
    A layer's weight becomes `W0 + s (B A - B0 A0)`. `s B0 A0` is the part of W0 with its r largest singular
    values, and B and A start as B0 and A0, so that the model starts as the base, bit for bit. The paper
    stores the rest `W0 - s B0 A0` in place of W0; here W0 stays as it is and B0 and A0 are kept as constants,
    which gives the same function and the base back when the adapter is removed.

Where it attaches
    Linear, Conv2d and ConvTranspose2d layers in any form. With `targets`, only those outputs of a fused
    layer are decomposed and changed.

Parameters
    `r (rows + columns)` of the weight as a matrix, as `lora`, where r is at most the smaller of both. A file
    also holds B0 and A0: it is twice as large as that of `lora`.

When to use it
    Where `lora` learns slowly: B and A start at the directions that matter most in W0 instead of at zero.
    Merges.

Source
    Meng et al., PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models,
    2024, section 3; its fast decomposition, with 8 iterations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segtune.methods.attach import full_precision, own_weight
from segtune.methods.layers import Ranges, pick, spread
from segtune.methods.lora import Form, LoraOperation, LowRank, LowRankSettings, choose_form, factor_shape
from segtune.types import Site

NUM_ITERATIONS = 8
OVERSAMPLING = 16
"""Further directions that the fast decomposition looks at beside the r that are wanted."""


class PissaSettings(LowRankSettings):
    """Settings of `pissa`."""


class PissaOperation(LoraOperation):
    """`W0 + s (B A - B0 A0)` on one layer.

    Args:
        layer: nn.Linear, nn.Conv2d or nn.ConvTranspose2d, or a subclass, with its weights loaded.
        rank: r, at most the rank that the layer's weight can have.
        scale: s.
        form: "branch" or "weight".
        ranges: of the outputs that are changed; default: all.
    """

    constants = frozenset({"first_up", "first_down"})
    first_up: Tensor
    first_down: Tensor

    def __init__(
        self, layer: nn.Module, *, rank: int, scale: float, form: Form, ranges: Ranges | None
    ) -> None:
        super().__init__(layer, rank=rank, scale=scale, form=form, ranges=ranges)
        with torch.no_grad(), full_precision(self.up.device):
            up, down = self._principal(own_weight(layer), rank)
            self.up.copy_(up)
            self.down.copy_(down)
        self.register_buffer("first_up", self.up.detach().clone())
        self.register_buffer("first_down", self.down.detach().clone())

    def _principal(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """B0 [rows, r] and A0 [r, columns] such that `s B0 A0` is the principal part of the weight."""
        if weight.is_meta:
            return self.up, self.down
        matrix = (weight.transpose(0, 1) if self.transposed else weight).reshape(self.rows, -1).float()
        matrix = pick(matrix, self.ranges)
        wanted = min(rank + OVERSAMPLING, *matrix.shape)
        left, values, right = torch.svd_lowrank(matrix, wanted, NUM_ITERATIONS)
        root = (values[:rank] / self.scale).sqrt()
        return left[:, :rank] * root, root[:, None] * right[:, :rank].T

    def factors(self) -> tuple[Tensor, Tensor]:
        """`[B - B0, B0]` and `[A, A - A0]`, whose product is `B A - B0 A0`.

        The start is exactly zero, and what was learned is not lost in the rounding of what was there.
        """
        up = torch.cat([self.up - self.first_up, self.first_up], dim=1)
        return spread(up, self.ranges, self.rows, 0.0), torch.cat([self.down, self.down - self.first_down])


class Pissa(LowRank):
    """PiSSA on linear and convolution layers."""

    settings: PissaSettings
    name = "pissa"

    def operation(self, site: Site) -> PissaOperation:
        """A `PissaOperation`, in the faster form of those that are right for the site."""
        return PissaOperation(
            site.module,
            rank=self.rank(site),
            scale=self.scale,
            form=choose_form(site.module, site.access),
            ranges=self.ranges(site),
        )

    def rank(self, site: Site) -> int:
        """R, or the rank that the weight can have where that is less."""
        return min(self.settings.rank, self.num_rows(site), factor_shape(site.module)[1])

    def num_parameters(self, site: Site) -> int:
        """`r (rows + columns)`."""
        return self.rank(site) * (self.num_rows(site) + factor_shape(site.module)[1])
