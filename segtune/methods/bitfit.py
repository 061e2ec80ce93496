"""Trains the biases that the network has, and nothing else but the head.

What it changes
    Every existing bias vector; no bias is added where a layer has none.

Where it attaches
    Every layer with a bias: linear, convolution, transposed convolution and norm. A convolution that
    is followed by a batch norm usually has none; the norm's shift takes its place.

Parameters
    One for each output channel of a layer with a bias.

When to use it
    As the smallest baseline: adapters of a few kilobytes. Merged by nature.

Source
    Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models, 2022.
"""

from __future__ import annotations

from segtune.methods.base import LEAF_KINDS, Host, Method, PlacementSettings, Role
from segtune.types import Site


class BitFitSettings(PlacementSettings):
    """Settings of `bitfit`."""


class BitFit(Method):
    """Bias tuning."""

    settings: BitFitSettings

    def apply(self, host: Host) -> None:
        """Trains the bias of every chosen site that has one."""
        for site in host.select(LEAF_KINDS, self.settings, "bitfit"):
            host.train(site, Role.BIAS, ["bias"])

    def num_parameters(self, site: Site) -> int:
        """Output channels of a layer with a bias."""
        bias = site.module._parameters.get("bias")
        return 0 if bias is None else bias.numel()
