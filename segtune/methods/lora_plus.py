"""LoRA whose B learns faster than its A (LoRA+).

What it changes
    As `lora`; the learning rate of B is `rate_ratio` times that of A. `optim.learning_rate` is the rate
    of A and of all else that is trained.

Where it attaches
    As `lora`.

Parameters
    As `lora`.

When to use it
    Where `lora` learns slowly: with equal rates, A is learned too fast or B too slowly in wide layers.
    At its default rate the product of both rates is that of `lora`. Merges.

Source
    Hayou et al., LoRA+: Efficient Low Rank Adaptation of Large Models, 2024, section 4; the ratio of 16
    is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from segtune.methods.lora import Lora, LoraOperation, LoraSettings
from segtune.types import Site


class LoraPlusSettings(LoraSettings):
    """Settings of `lora-plus`."""

    rate_ratio: float = Field(16.0, gt=0, description="learning rate of B divided by that of A")


class LoraPlusOperation(LoraOperation):
    """LoRA with a learning rate for B alone."""

    rate_ratio = 1.0

    def rate_factors(self) -> Mapping[str, float]:
        """That of B."""
        return {"up": self.rate_ratio}


class LoraPlus(Lora):
    """LoRA+."""

    settings: LoraPlusSettings
    name = "lora-plus"
    operation_class = LoraPlusOperation
    learning_rate = 2.5e-4

    def operation(self, site: Site) -> LoraOperation:
        """A `LoraPlusOperation`."""
        operation = super().operation(site)
        assert isinstance(operation, LoraPlusOperation)
        operation.rate_ratio = self.settings.rate_ratio
        return operation
