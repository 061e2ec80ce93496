"""Trains nothing: the model is scored as it was published.

What it changes
    Nothing.

Where it attaches
    Nowhere.

Parameters
    None.

When to use it
    As the lower baseline, for models whose published weights can answer for these classes already: SAM
    with prompts, or weights whose classifier fits the data. A run of it takes no step and leaves the
    same folder as any other. A model with a new classifier is refused: its scores would be those of
    random numbers.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segtune.methods.base import Host, Method, MethodSettings
from segtune.types import Site


class ZeroShotSettings(MethodSettings):
    """Settings of `zero-shot`: there is nothing to choose."""

    train_head: Literal[False] = Field(False, description="nothing is trained")
    train_norm: Literal[False] = Field(False, description="nothing is trained")
    train_bias: Literal[False] = Field(False, description="nothing is trained")
    statistics: Literal["frozen"] = Field("frozen", description="nothing is trained")


class ZeroShot(Method):
    """The published model."""

    settings: ZeroShotSettings
    trains = False

    def apply(self, host: Host) -> None:
        """Leaves the model as it is, frozen."""

    def num_parameters(self, site: Site) -> int:
        """None."""
        return 0
