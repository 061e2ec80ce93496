"""Trained tokens that join the image's own in attention (visual prompt tuning).

What it changes
    `num_tokens` trained tokens stand in front of the sequence that enters a block. With `form=deep` every
    block gets tokens of its own, and what comes out for them is dropped behind it; with `form=shallow` only
    the first block does, and each further one gets what the block before made of them.

    Where attention is windowed, every window sees the same tokens, without a bias for their relative
    position. They act as further keys and values, which is all that tokens do whose outputs are dropped;
    the shallow form needs those outputs, which would differ from window to window, and is refused.

    The start is not the base: attention divides its weight among more tokens than before, whatever their
    values; tokens that no patch attends to could not learn.

Where it attaches
    Places where tokens may join the sequence (sites of kind `tokens`), in attention blocks.

Parameters
    `n C` for n tokens of C channels: at every block, or in the shallow form at the first.

When to use it
    Where a transformer knows all that is needed and has to be told what to look for. It changes no
    weight, combines with `lora` and `conv-lora`, does not merge, and makes attention a little slower.

Source
    Jia et al., Visual Prompt Tuning, 2022, section 3.2; positions in windows as in its Swin experiments.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from segtune.errors import NoSiteError
from segtune.methods.attach import Operation
from segtune.methods.base import Host, Method, PlacementSettings
from segtune.methods.layers import first_of, with_first
from segtune.types import Site, SiteKind


class VptSettings(PlacementSettings):
    """Settings of `vpt`."""

    form: Literal["deep", "shallow"] = Field(
        "deep", description="deep: tokens of its own for every block; shallow: for the first block only"
    )
    num_tokens: int = Field(12, ge=1, description="n, number of tokens")


class VptOperation(Operation):
    """Tokens in front of the sequence that enters one block; what comes out for them is taken off.

    So nobody else sees them, not even a network that reads what comes out of every block.

    Args:
        channels: C.
        num_tokens: n.
        port: the module is a port (`Site.port`), whose model drops what comes out.
        passes: keep what comes out for the tokens, for another block.
        previous: the block whose tokens are passed on to this one; None: trained ones enter.
    """

    passed: Tensor | None = None
    """What the block made of the tokens in the last forward, [B, n, C]."""

    def __init__(
        self,
        channels: int,
        *,
        num_tokens: int,
        port: bool = False,
        passes: bool = False,
        previous: VptOperation | None = None,
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.port = port
        self.passes = passes
        self.previous = (previous,)  # in a tuple, as it is a child of another block
        self.tokens = None if previous is not None else nn.Parameter(torch.empty(num_tokens, channels))
        if self.tokens is not None:
            bound = math.sqrt(3 / channels)  # as a layer of C inputs and outputs would start
            nn.init.uniform_(self.tokens, -bound, bound)

    def __getstate__(self) -> dict[str, Any]:
        # what the last forward left behind belongs to its graph
        return {key: value for key, value in self.__dict__.items() if key != "passed"}

    def before(self, x: Tensor) -> Tensor:
        """[B, N, C] with the tokens in front, [B, n + N, C]."""
        (previous,) = self.previous
        tokens = self.tokens if previous is None else previous.passed
        assert tokens is not None, "the block before was not called"
        return torch.cat([tokens.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)

    def after(self, layer: nn.Module, x: Tensor, y: Any) -> Any:
        """What came out, alone or as the first value of a tuple, without the tokens."""
        if self.port:
            return y
        sequence = first_of(y)
        if self.passes:
            self.passed = sequence[:, : self.num_tokens]
        return with_first(y, sequence[:, self.num_tokens :])

    def merge_refusal(self) -> str | None:
        """No weight holds them."""
        return "it adds tokens to the input, which no weight of the model can hold"


class Vpt(Method):
    """Visual prompt tuning."""

    settings: VptSettings
    starts_as_base = False
    start_difference = math.inf

    def apply(self, host: Host) -> None:
        """Attaches a `VptOperation` to every chosen place."""
        shallow = self.settings.form == "shallow"
        usable = [site for site in host.sites if site.channels is not None]
        chosen = host.select({SiteKind.TOKENS}, self.settings, "vpt", among=usable)
        if shallow and any(site.port for site in chosen):
            raise NoSiteError(
                "vpt: shallow tokens are passed on from block to block, and in this model's windowed"
                " attention what comes out for a token differs from window to window",
                hint="use method.form=deep, which drops it",
            )
        previous: VptOperation | None = None
        for site in chosen:
            assert site.channels is not None
            operation = VptOperation(
                site.channels,
                num_tokens=self.settings.num_tokens,
                port=site.port,
                passes=shallow and site is not chosen[-1],
                previous=previous,
            )
            host.attach(site, "vpt", operation)
            previous = operation if shallow else None

    def num_parameters(self, site: Site) -> int:
        """`n C`."""
        assert site.channels is not None
        return self.settings.num_tokens * site.channels
