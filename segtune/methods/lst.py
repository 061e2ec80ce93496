"""A small network beside the base, fed by its blocks; no gradient enters the base (ladder side tuning).

What it changes
    A side network of d channels climbs a ladder of which every block of the base is a rung. From the
    state s it makes `mu_i D_i h_i + (1 - mu_i) s` at rung i, where h_i is what comes out of the block,
    without its gradient, and `mu_i = sigmoid(a_i / 0.1)` a trained gate; s is 0 before the first. At
    `num_side_blocks` rungs, evenly spaced, a transformer block of d channels follows, with norms that
    only scale and no biases. What the last block puts out becomes `y + U norm(s)`. U = 0 at the start, so
    that the model starts as the base.

    Maps of different sizes are averaged to the smallest of them, of at most `max_tokens` places, and what
    is added is enlarged again. Sequences must be of one length.

Where it attaches
    Blocks: every one, or with `num_taps` that many, evenly spaced and the last one among them. Gradients
    pass what lies behind the last one, and nothing before it.

Parameters
    `C d + 1` for each rung of C channels; for each side block `12 d d + 2 d`; `C d + d` at the last rung. d
    is the largest C divided by `reduction`, at least 8.

When to use it
    Where memory is short: activations of the base are not kept, but for what comes out of the rungs. It
    does not merge, and a method that trains the base along (`lora+lst`) takes the advantage away.

Source
    Sung et al., LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning, 2022,
    section 3; there for T5, whose blocks have no biases, with the reduction of 8 and the gate's 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segtune.errors import UsageError
from segtune.methods.attach import Operation
from segtune.methods.base import Host, Method, PlacementSettings
from segtune.methods.layers import first_of, with_first
from segtune.types import Site, SiteKind

TEMPERATURE = 0.1
"""Of the gates: the smaller, the sooner one opens or closes."""
SMALLEST_WIDTH = 8
HEAD_SIZE = 32
"""Channels of an attention head of the side network, at least."""


class LstSettings(PlacementSettings):
    """Settings of `lst`."""

    reduction: int = Field(8, ge=1, description="channels of the widest rung for each of the side network")
    width: int | None = Field(
        None, ge=1, description="d, channels of the side network; default: by the reduction, at least 8"
    )
    num_taps: int | None = Field(None, ge=1, description="number of rungs; default: every block is one")
    num_side_blocks: int = Field(
        4, ge=0, description="transformer blocks of the side network, at most one for each rung"
    )
    max_tokens: int = Field(
        4096, ge=1, description="places of a map, height times width, that the side network looks at, at most"
    )


class SideBlock(nn.Module):
    """Attention and MLP, each behind a norm and with a residual.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = next(n for n in range(max(1, width // HEAD_SIZE), 0, -1) if width % n == 0)
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.lin1 = nn.Linear(width, 4 * width, bias=False)
        self.lin2 = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, d] to the same shape."""
        qkv: Tensor = self.qkv(self.norm1(x))
        query, key, value = qkv.view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)  # [B, heads, N, d / heads]
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        hidden: Tensor = self.lin2(F.gelu(self.lin1(self.norm2(x))))
        return x + hidden


class RungOperation(Operation):
    """One rung: `mu D h + (1 - mu) s`, and a side block where one follows.

    It changes nothing on its block, and keeps what comes out until the end of the ladder.

    Args:
        channels: C.
        width: d.
        axis: of the channels in h, 1 or -1.
        max_tokens: of a map.
        side_block: whether one follows.
    """

    kept: Tensor | None = None
    """h of the last forward: a sequence [B, N, C] or a map [B, C, h, w]."""

    def __init__(self, channels: int, *, width: int, axis: int, max_tokens: int, side_block: bool) -> None:
        super().__init__()
        self.axis = axis
        self.max_tokens = max_tokens
        self.down = nn.Parameter(torch.empty(width, channels))  # D
        self.gate = nn.Parameter(torch.zeros(()))  # a
        self.side_block = SideBlock(width) if side_block else None
        # uniform in +-1/sqrt(fan in), as the layers themselves start
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "kept"}

    def after(self, layer: nn.Module, x: Tensor, y: Any) -> Any:
        """Y as it is; kept without its gradient."""
        self._keep(y)
        return y

    def _keep(self, y: Any) -> None:
        h = first_of(y).detach()
        if h.ndim == 4:
            h = h.permute(0, 3, 1, 2) if self.axis == -1 else h
            height, width = h.shape[2:]
            shrink = math.sqrt(self.max_tokens / (height * width))
            if shrink < 1:
                h = F.adaptive_avg_pool2d(h, (max(1, int(height * shrink)), max(1, int(width * shrink))))
        self.kept = h

    def climb(self, state: Tensor | None, grid: tuple[int, int] | None) -> Tensor:
        """The side network's state [B, N, d] behind this rung.

        Args:
            state: behind the rung before; None: 0.
            grid: of the places N; None: h is a sequence.
        """
        h = self.kept
        assert h is not None, "the block was not called"
        if grid is not None:
            h = h if h.shape[2:] == grid else F.adaptive_avg_pool2d(h, grid)
            h = h.flatten(2).transpose(1, 2)
        if not torch.is_grad_enabled():
            self.kept = None  # with gradients a checkpoint may have to look at it once more
        low = F.linear(h, self.down.to(h.dtype)).to(self.down.dtype)
        openness = torch.sigmoid(self.gate / TEMPERATURE)
        state = openness * low if state is None else openness * low + (1 - openness) * state
        return state if self.side_block is None else self.side_block(state)

    def merge_refusal(self) -> str | None:
        """It is a network of its own."""
        return "its network stands beside the base, and no weight of the base can do its work"


class LadderOperation(RungOperation):
    """The last rung, where the side network runs: `y + U norm(s)`.

    Args:
        channels: C.
        width: d.
        axis: of the channels in y, 1 or -1.
        max_tokens: of a map.
        side_block: whether a side block stands here.
        lower: the rungs below, the first first.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        axis: int,
        max_tokens: int,
        side_block: bool,
        lower: Sequence[RungOperation],
    ) -> None:
        super().__init__(channels, width=width, axis=axis, max_tokens=max_tokens, side_block=side_block)
        self.lower = tuple(lower)  # in a tuple, as they are children of other blocks
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Parameter(torch.zeros(channels, width))  # U

    def after(self, layer: nn.Module, x: Tensor, y: Any) -> Any:
        """`y + U norm(s)`."""
        self._keep(y)
        rungs = (*self.lower, self)
        grid = _common_grid([rung.kept for rung in rungs])
        state: Tensor | None = None
        for rung in rungs:
            state = rung.climb(state, grid)
        assert state is not None
        added = F.linear(self.norm(state), self.up)  # [B, N, C]
        own = first_of(y)
        if grid is not None:
            added = added.transpose(1, 2).reshape(len(added), -1, *grid)
            size = own.shape[2:] if self.axis == 1 else own.shape[1:3]
            if size != grid:
                added = F.interpolate(added, size, mode="bilinear", align_corners=False)
            added = added if self.axis == 1 else added.permute(0, 2, 3, 1)
        return with_first(y, own + added.to(own.dtype))


def _common_grid(kept: Sequence[Tensor | None]) -> tuple[int, int] | None:
    """Height and width of the smallest map; None for sequences.

    Raises:
        UsageError: sequences of several lengths, or sequences and maps.
    """
    shapes = [h.shape for h in kept if h is not None]
    assert len(shapes) == len(kept), "a block was not called"
    if all(len(shape) == 4 for shape in shapes):
        return min(shape[2] for shape in shapes), min(shape[3] for shape in shapes)
    if len({shape[1] for shape in shapes}) > 1 or any(len(shape) != 3 for shape in shapes):
        raise UsageError(
            "lst: blocks give sequences of several lengths or sequences and maps"
            f" ({', '.join(sorted({' x '.join(map(str, shape[1:])) for shape in shapes}))}), which have no"
            " common places",
            hint="choose blocks of one kind with method.include, first_blocks or last_blocks",
        )
    return None


class Lst(Method):
    """Ladder side tuning."""

    settings: LstSettings

    def apply(self, host: Host) -> None:
        """Attaches a rung to every chosen block, and the end of the ladder to the last one."""
        settings = self.settings
        usable = [site for site in host.sites if site.channels is not None]
        chosen = host.select({SiteKind.BLOCK}, settings, "lst", among=usable)
        sites = [chosen[i] for i in _spaced(len(chosen), settings.num_taps or len(chosen))]
        with_block = set(_spaced(len(sites), settings.num_side_blocks))
        width = self._width(sites)
        rungs: list[RungOperation] = []
        for index, site in enumerate(sites):
            assert site.channels is not None
            options: dict[str, Any] = {
                "width": width,
                "axis": site.channel_axis,
                "max_tokens": settings.max_tokens,
                "side_block": index in with_block,
            }
            last = site is sites[-1]
            rung = (
                LadderOperation(site.channels, lower=rungs, **options)
                if last
                else RungOperation(site.channels, **options)
            )
            host.attach(site, "lst", rung)
            rungs.append(rung)

    def _width(self, sites: Sequence[Site]) -> int:
        if self.settings.width is not None:
            return self.settings.width
        widest = max(site.channels or 0 for site in sites)
        return max(SMALLEST_WIDTH, widest // self.settings.reduction)

    def num_parameters(self, site: Site) -> int:
        """As of a ladder with this one rung."""
        return self.total_parameters([site])

    def total_parameters(self, sites: Sequence[Site]) -> int:
        """`C d + 1` for each site, `12 d d + 2 d` for each side block, `C d + d` for the last site."""
        width = self._width(sites)
        channels = [site.channels or 0 for site in sites]
        num_blocks = len(_spaced(len(sites), self.settings.num_side_blocks))
        side_network = num_blocks * (12 * width * width + 2 * width) + channels[-1] * width + width
        return sum(channels) * width + len(sites) + side_network


def _spaced(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the indices 0 to count - 1, evenly spaced, the last one among them."""
    wanted = min(count, wanted)
    return [(number + 1) * count // wanted - 1 for number in range(wanted)]
