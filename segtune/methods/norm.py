"""Trains scale and shift of every normalisation layer, and nothing else but the head.

What it changes
    The affine parameters of batch, group, instance and layer norms. Running statistics stay frozen
    unless `statistics=train`.

Where it attaches
    Norm layers.

Parameters
    Two for each channel of a norm.

When to use it
    Where the new images differ in contrast and brightness more than in content. Merged by nature.

Source
    Frankle et al., Training BatchNorm and Only BatchNorm, 2021; for transformers: Basu et al., Strong
    Baselines for Parameter Efficient Few-Shot Fine-tuning, 2023.
"""

from __future__ import annotations

from segtune.methods.base import Host, Method, PlacementSettings, Role, num_own_parameters
from segtune.types import Site, SiteKind


class NormSettings(PlacementSettings):
    """Settings of `norm`."""


class Norm(Method):
    """Norm tuning."""

    settings: NormSettings

    def apply(self, host: Host) -> None:
        """Trains the affine parameters of every chosen norm."""
        for site in host.select({SiteKind.NORM}, self.settings, "norm"):
            host.train(site, Role.NORM, ["weight", "bias"])

    def num_parameters(self, site: Site) -> int:
        """Scale and shift."""
        return num_own_parameters(site)
