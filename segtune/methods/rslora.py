"""LoRA whose scale falls with the root of the rank (rsLoRA).

What it changes
    As `lora`, with `s = alpha / sqrt(r)` in place of `alpha / r`.

Where it attaches
    As `lora`.

Parameters
    As `lora`.

When to use it
    With ranks of 32 and more: with `alpha / r` the change, and what is learned from a step, shrink as the
    rank grows. `alpha` defaults to the rank, so that `s = sqrt(r)`. Merges.

Source
    Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, section 3.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segtune.methods.lora import Lora, LoraSettings


class RsLoraSettings(LoraSettings):
    """Settings of `rslora`."""

    rank_stabilised: Literal[True] = Field(True, description="what makes it rsLoRA; without it, use lora")


class RsLora(Lora):
    """Rank-stabilised LoRA."""

    settings: RsLoraSettings
    name = "rslora"
