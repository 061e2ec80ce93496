"""Scales and shifts what comes out of every layer and norm (SSF).

What it changes
    A layer's output y becomes `a y + b` with a factor and a shift for each channel, 1 and 0 at the start, so
    that the model starts as the base. Where other code reads a layer's weight and bias instead of
    calling it, those are changed: the same function.

    A layer without bias is only scaled, since the norm behind it has a shift and gets one of its own. With
    `shift_without_bias` it is shifted as well, as in the paper; merging then gives it a bias, and the merged
    model has more tensors than the base.

Where it attaches
    Linear, Conv2d and ConvTranspose2d layers in any form, and norms.

Parameters
    2 O for O output channels; O for a layer without bias (2 O with `shift_without_bias`).

When to use it
    Where images differ in contrast, colour and brightness more than in content, and `norm` does not
    reach far enough. Merges.

Source
    Lian et al., Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning, 2022,
    section 3.2.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from segtune.methods.base import Host, Method, PlacementSettings
from segtune.methods.layers import OutputChannels, OutputOperation, along, runs_as_called
from segtune.types import Access, Site, SiteKind


class SsfSettings(PlacementSettings):
    """Settings of `ssf`."""

    shift_without_bias: bool = Field(
        False, description="shift layers without bias too; merging then adds tensors to the model"
    )
    kinds: tuple[
        Literal["attention_qkv", "attention_proj", "mlp", "linear", "conv", "conv_transpose", "norm"], ...
    ] = Field(
        ("attention_qkv", "attention_proj", "mlp", "linear", "conv", "conv_transpose", "norm"),
        min_length=1,
        description="kinds of sites to attach to",
    )


class SsfOperation(OutputOperation):
    """`a y + b` behind one layer.

    Args:
        layer: nn.Linear, nn.Conv2d, nn.ConvTranspose2d or a norm with a weight, or a subclass.
        shift: have b.
        axis: of the output's channels.
        form: "output" or "weight".
    """

    def __init__(self, layer: nn.Module, *, shift: bool, axis: int, form: str) -> None:
        super().__init__(form=form)
        self.channels = channels_of(layer)
        self.axis = axis
        self.scale = nn.Parameter(torch.ones(self.channels.num))
        self.shift = nn.Parameter(torch.zeros(self.channels.num)) if shift else None
        self.has_place_for_shift = "bias" in layer._parameters
        self.layer_class = getattr(type(layer), "adapted_class", type(layer)).__name__

    def weight(self, weight: Tensor) -> Tensor:
        """`a W`."""
        return self.channels.scaled(weight, self.scale)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """`a bias + b`."""
        if bias is None:
            return self.shift
        changed = bias * self.scale
        return (changed if self.shift is None else changed + self.shift).to(bias.dtype)

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """`a y + b`; y in the weight form."""
        if self.changes_weight:
            return y
        scaled = y * along(self.scale, self.axis, y)
        return scaled if self.shift is None else scaled + along(self.shift, self.axis, y)

    def merge_refusal(self) -> str | None:
        """A layer that cannot have a bias has no place for a shift."""
        if self.shift is None or self.has_place_for_shift:
            return None
        return f"{self.layer_class} has no bias to hold a shift (method.shift_without_bias=false has none)"


class Ssf(Method):
    """Scale and shift behind layers and norms."""

    settings: SsfSettings
    learning_rate = 3e-3

    def apply(self, host: Host) -> None:
        """Attaches an `SsfOperation` to every chosen site."""
        kinds = {SiteKind(kind) for kind in self.settings.kinds}
        for site in host.select(kinds, self.settings, "ssf"):
            if site.kind is SiteKind.NORM:
                called = site.access is Access.CALL
            else:
                called = runs_as_called(site.module, site.access)
            operation = SsfOperation(
                site.module,
                shift=self._has_shift(site),
                axis=site.channel_axis,
                form="output" if called else "weight",
            )
            host.attach(site, "ssf", operation)

    def num_parameters(self, site: Site) -> int:
        """`O`, or `2 O` with a shift."""
        return channels_of(site.module).num * (2 if self._has_shift(site) else 1)

    def _has_shift(self, site: Site) -> bool:
        return self.settings.shift_without_bias or site.module._parameters.get("bias") is not None


def channels_of(layer: nn.Module) -> OutputChannels:
    """Output channels of a layer or a norm."""
    if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        return OutputChannels.of(layer)
    weight = layer._parameters["weight"]
    assert weight is not None
    return OutputChannels(weight.numel(), False, 1)
