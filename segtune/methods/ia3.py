"""(IA)3: scales keys, values, hidden MLP units and convolution outputs.

What it changes
    Activations are multiplied by one learned factor for each channel, 1 at the start, so that the model
    starts as the base: the keys and values of an attention, the units of an MLP's hidden layer behind
    their activation function, and the output of a convolution, its bias included. Where other code reads
    a layer's weight and bias instead of calling it, those are scaled: the same function.

Where it attaches
    The ranges named k and v of layers that compute them, fused or not (the whole output where the model
    does not name its ranges); the last layer of an MLP, whose input is the hidden layer; Conv2d and
    ConvTranspose2d layers in any form, and with `kinds=linear` other linear layers.

Parameters
    Channels named k and v; I of an MLP's last layer with I inputs; O of any other layer with O outputs.

When to use it
    Where an adapter of a few kilobytes is wanted, and `bitfit` finds no biases. Merges.

Source
    Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning,
    2022, section 3.3. For convolutions: one factor for each output channel.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from segtune.methods.attach import Operation, Order, own_weight
from segtune.methods.base import Host, Method, PlacementSettings, mlp_pairs
from segtune.methods.layers import (
    OutputChannels,
    OutputOperation,
    Ranges,
    along,
    named_ranges,
    runs_as_called,
    spread,
    width_of,
)
from segtune.types import Site, SiteKind


class Ia3Settings(PlacementSettings):
    """Settings of `ia3`."""

    kinds: tuple[Literal["attention_qkv", "mlp", "linear", "conv", "conv_transpose"], ...] = Field(
        ("attention_qkv", "mlp", "conv", "conv_transpose"),
        min_length=1,
        description="kinds of sites to attach to",
    )


class OutputScale(OutputOperation):
    """One factor for each output channel in some ranges.

    Args:
        layer: nn.Linear, nn.Conv2d or nn.ConvTranspose2d, or a subclass.
        ranges: of output channels; the others stay as they are.
        axis: of the output's channels.
        form: "output" or "weight".
    """

    def __init__(self, layer: nn.Module, *, ranges: Ranges, axis: int, form: str) -> None:
        super().__init__(form=form)
        self.channels = OutputChannels.of(layer)
        self.ranges = tuple(ranges)
        self.axis = axis
        self.scale = nn.Parameter(torch.ones(width_of(ranges)))

    def factors(self) -> Tensor:
        """[O], 1 outside of the ranges."""
        return spread(self.scale, self.ranges, self.channels.num, 1.0)

    def weight(self, weight: Tensor) -> Tensor:
        """The weight, scaled by output channel."""
        return self.channels.scaled(weight, self.factors())

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """The bias, scaled."""
        return None if bias is None else (bias * self.factors()).to(bias.dtype)

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The output, scaled; unchanged in the weight form."""
        return y if self.changes_weight else y * along(self.factors(), self.axis, y)

    def merge_refusal(self) -> str | None:
        """None: it always folds."""
        return None


class InputScale(Operation):
    """One factor for each input of a linear layer.

    Args:
        layer: nn.Linear, or a subclass.
        form: "input" or "weight".
    """

    def __init__(self, layer: nn.Linear, *, form: str) -> None:
        super().__init__()
        self.changes_weight = form == "weight"
        self.scale = nn.Parameter(torch.ones(layer.in_features))

    @property
    def order(self) -> Order:
        """Behind every change of the weight, in either form."""
        return Order.AROUND

    def before(self, x: Tensor) -> Tensor:
        """The input, scaled; unchanged in the weight form."""
        return x if self.changes_weight else x * self.scale.to(x.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        """The weight, scaled by input."""
        return (weight * self.scale).to(weight.dtype)

    def fold(self, layer: nn.Module) -> None:
        """Scales the columns of the layer's weight."""
        weight = own_weight(layer)
        weight.copy_(self.weight(weight))

    def merge_refusal(self) -> str | None:
        """None: it always folds."""
        return None


class Ia3(Method):
    """(IA)3 on attention, MLP and convolution layers."""

    settings: Ia3Settings
    learning_rate = 3e-3

    def apply(self, host: Host) -> None:
        """Attaches a scale to every chosen site that has channels to scale."""
        last_of_mlp = {last for _, last in mlp_pairs(host.sites)}
        usable = [site for site in host.sites if _has_channels(site, last_of_mlp)]
        kinds = {SiteKind(kind) for kind in self.settings.kinds}
        for site in host.select(kinds, self.settings, "ia3", among=usable):
            called = runs_as_called(site.module, site.access)
            if site.kind is SiteKind.MLP:
                assert isinstance(site.module, nn.Linear)
                host.attach(site, "ia3", InputScale(site.module, form="input" if called else "weight"))
                continue
            scale = OutputScale(
                site.module,
                ranges=_ranges(site),
                axis=site.channel_axis,
                form="output" if called else "weight",
            )
            host.attach(site, "ia3", scale)

    def num_parameters(self, site: Site) -> int:
        """Inputs of an MLP's last layer; elsewhere the output channels that are scaled."""
        if site.kind is SiteKind.MLP:
            assert isinstance(site.module, nn.Linear)
            return site.module.in_features
        return width_of(_ranges(site))


def _has_channels(site: Site, last_of_mlp: set[Site]) -> bool:
    if site.kind is SiteKind.MLP:
        return site in last_of_mlp
    return not site.splits or bool(_ranges(site))


def _ranges(site: Site) -> Ranges:
    if site.splits:
        return named_ranges(site, ("k", "v"))
    return ((0, OutputChannels.of(site.module).num),)
