"""LoRA whose A stays as it was drawn (LoRA-FA).

What it changes
    As `lora`, but only B is trained. A is random, and saved with the adapter, so that the file gives
    the same output on every machine.

Where it attaches
    As `lora`.

Parameters
    `r` times the rows of B: Linear and Conv2d `r O`, ConvTranspose2d `r O/g`. A file also holds A.

When to use it
    To save activation memory: where the change runs as a branch, only the r channels between A and B are
    kept for the backward pass. Convolutions of few channels run on the changed weight and keep their
    input as with `lora`. Merges.

Source
    Zhang et al., LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning,
    2023, section 3.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from segtune.methods.lora import Lora, LoraOperation, LoraSettings
from segtune.types import Site


class LoraFaSettings(LoraSettings):
    """Settings of `lora-fa`."""


class LoraFaOperation(LoraOperation):
    """LoRA with a constant A."""

    constants = frozenset({"down"})

    def __init__(self, layer: nn.Module, **options: Any) -> None:
        super().__init__(layer, **options)
        down = self.down.detach()
        del self.down
        self.register_buffer("down", down)


class LoraFa(Lora):
    """LoRA-FA."""

    settings: LoraFaSettings
    name = "lora-fa"
    operation_class = LoraFaOperation

    def num_parameters(self, site: Site) -> int:
        """`r` times the rows of B."""
        return self.settings.rank * self.num_rows(site)
