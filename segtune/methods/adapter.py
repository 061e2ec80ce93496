"""Small bottleneck networks behind MLPs and blocks.

What it changes
    With `form=sequential` (Houlsby) an output y becomes `y + s U gelu(D y)`: D reduces the channels to
    `width`, U restores them. With `form=parallel` (AdaptFormer) the bottleneck stands beside the MLP and
    reads what the MLP reads: `y + s U relu(D x)`. U = 0 at the start, so that the model starts as the
    base. On maps [B, C, H, W], D and U are 1 x 1 convolutions.

Where it attaches
    The last layer of every MLP, and the end of every block that holds no MLP, such as those of
    convolutional networks; with `kinds=stage` the ends of stages. The parallel form: MLPs only.

Parameters
    `2 C width` for C channels; with `biases` also `C + width`.

When to use it
    Where a change that depends on the input is wanted, which no merged weight can express. It is not
    mergeable, and takes a little time in inference.

Source
    Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019, section 2.1 (the adapter behind
    the MLP, without biases unless asked for); Chen et al., AdaptFormer: Adapting Vision Transformers for
    Scalable Visual Recognition, 2022, section 3.2, with its scale of 0.1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segtune.errors import UsageError
from segtune.methods.attach import Operation
from segtune.methods.base import Host, Method, PlacementSettings, mlp_pairs
from segtune.types import Access, Site, SiteKind


class AdapterSettings(PlacementSettings):
    """Settings of `adapter`."""

    form: Literal["sequential", "parallel"] = Field(
        "sequential", description="sequential: behind the MLP (Houlsby); parallel: beside it (AdaptFormer)"
    )
    width: int = Field(8, ge=1, description="channels of the bottleneck")
    scale: float | None = Field(
        None, gt=0, description="s, factor of what is added; default: 1, in the parallel form 0.1"
    )
    biases: bool = Field(False, description="give D and U a bias each")
    kinds: tuple[Literal["mlp", "block", "stage"], ...] = Field(
        ("mlp", "block"), min_length=1, description="kinds of sites to attach to"
    )


class InputTap(Operation):
    """Keeps a layer's input for the adapter that stands beside it; has no tensors of its own."""

    kept: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        """X, kept until it is taken."""
        self.kept = x
        return x

    def take(self) -> Tensor:
        """The input of the last call."""
        x, self.kept = self.kept, None
        assert x is not None, "the first layer of the MLP was not called"
        return x

    def merge_refusal(self) -> str | None:
        """None: there is nothing to fold."""
        return None

    def fold(self, layer: nn.Module) -> None:
        """Nothing."""


class AdapterOperation(Operation):
    """`y + s U activation(D x)`, where x is y itself or a tapped input.

    Args:
        channels: C.
        width: channels of the bottleneck.
        scale: s.
        biases: of D and U.
        axis: of the channels in y, 1 or -1.
        tap: where x comes from; None: from y.
    """

    def __init__(
        self, channels: int, *, width: int, scale: float, biases: bool, axis: int, tap: InputTap | None
    ) -> None:
        super().__init__()
        self.scale = scale
        self.axis = axis
        self.taps = (tap,)  # in a tuple, as it is a child of another layer
        self.down = nn.Parameter(torch.empty(width, channels))
        self.up = nn.Parameter(torch.zeros(channels, width))
        self.down_bias = nn.Parameter(torch.zeros(width)) if biases else None
        self.up_bias = nn.Parameter(torch.zeros(channels)) if biases else None
        # uniform in +-1/sqrt(fan in), as the layers themselves start
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """`y + s U activation(D x)`."""
        (tap,) = self.taps
        if tap is None:
            hidden = F.gelu(self._mix(y, self.down, self.down_bias))
        else:
            hidden = F.relu(self._mix(tap.take(), self.down, self.down_bias))
        return y + (self.scale * self._mix(hidden, self.up, self.up_bias)).to(y.dtype)

    def _mix(self, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        matrix = matrix.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        if self.axis == -1:
            return F.linear(x, matrix, bias)
        return F.conv2d(x, matrix[:, :, None, None], bias)

    def merge_refusal(self) -> str | None:
        """It is not linear."""
        return "it puts a non-linear bottleneck behind the layer, which no change of its weights equals"


class Adapter(Method):
    """Bottlenecks behind or beside MLPs, and behind blocks."""

    settings: AdapterSettings

    def apply(self, host: Host) -> None:
        """Attaches an `AdapterOperation` to every chosen site."""
        settings = self.settings
        pairs = {last: first for first, last in mlp_pairs(host.sites)}
        parallel = settings.form == "parallel"
        kinds = {SiteKind.MLP} if parallel else {SiteKind(kind) for kind in settings.kinds}
        usable = [site for site in host.sites if _usable(site, pairs)]
        for site in host.select(kinds, settings, "adapter", among=usable):
            tap = self._tap(host, pairs[site], site) if parallel else None
            operation = AdapterOperation(
                channels_of(site),
                width=settings.width,
                scale=(0.1 if parallel else 1.0) if settings.scale is None else settings.scale,
                biases=settings.biases,
                axis=site.channel_axis,
                tap=tap,
            )
            host.attach(site, "adapter", operation)

    def _tap(self, host: Host, first: Site, last: Site) -> InputTap:
        assert isinstance(first.module, nn.Linear)
        if first.module.in_features != channels_of(last):
            raise UsageError(
                f"adapter: the MLP that ends with {last.name} takes {first.module.in_features} channels and"
                f" gives {channels_of(last)}; the parallel form needs equal numbers",
                hint=f"use method.form=sequential, or method.exclude={last.name}",
            )
        tap = InputTap()
        host.attach(first, "adapter", tap)
        return tap

    def num_parameters(self, site: Site) -> int:
        """`2 C width`, and with biases `C + width`."""
        channels, width = channels_of(site), self.settings.width
        return 2 * channels * width + (channels + width if self.settings.biases else 0)


def channels_of(site: Site) -> int:
    """Output channels of a site that can be used."""
    if isinstance(site.module, nn.Linear):
        return site.module.out_features
    assert site.channels is not None
    return site.channels


def _usable(site: Site, pairs: dict[Site, Site]) -> bool:
    if site.kind is SiteKind.MLP:
        first = pairs.get(site)
        return first is not None and first.access is Access.CALL and site.access is Access.CALL
    if site.kind is SiteKind.BLOCK and any(last.name.startswith(f"{site.name}.") for last in pairs):
        return False
    return site.channels is not None
