"""Trains every parameter of the network.

What it changes
    Everything, running statistics included.

Where it attaches
    Everywhere.

Parameters
    All of the network's.

When to use it
    As the upper baseline, and wherever there is data and memory enough. The adapter is as large as the
    network. Merged by nature.
"""

from __future__ import annotations

from segtune.methods.base import Host, Method, MethodSettings, num_own_parameters
from segtune.types import Site


class FullSettings(MethodSettings):
    """Settings of `full`."""


class Full(Method):
    """Full fine-tuning."""

    settings: FullSettings
    moves_statistics = True
    learning_rate = 3e-4

    def apply(self, host: Host) -> None:
        """Trains the whole network."""
        host.train_everything()

    def num_parameters(self, site: Site) -> int:
        """All of the layer's own."""
        return num_own_parameters(site)
