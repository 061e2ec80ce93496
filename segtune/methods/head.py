"""Trains the decoder, or only the final classifier; the encoder stays frozen.

What it changes
    Every parameter of the decoder and the classifier, or with `scope=classifier` only the layer that
    maps to the classes.

Where it attaches
    Layers of the decoder and the head.

Parameters
    All of those layers' own.

When to use it
    First of all: no gradient passes through the encoder, so it is the method that saves memory and
    time, and the baseline that every other method must beat. Merged by nature.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segtune.methods.base import Host, Method, MethodSettings, Role, leaf_sites, num_own_parameters
from segtune.types import Part, Site


class HeadSettings(MethodSettings):
    """Settings of `head`."""

    scope: Literal["decoder", "classifier"] = Field(
        "decoder", description="decoder: everything behind the encoder; classifier: the last layer only"
    )


class Head(Method):
    """Decoder or classifier tuning."""

    settings: HeadSettings
    moves_statistics = True

    def apply(self, host: Host) -> None:
        """Trains every layer of the decoder; the classifier is trained with every method."""
        if self.settings.scope == "decoder":
            for site in leaf_sites(host.sites):
                if site.part in {Part.DECODER, Part.HEAD}:
                    host.train(site, Role.HEAD)

    def num_parameters(self, site: Site) -> int:
        """All of the layer's own."""
        return num_own_parameters(site)
