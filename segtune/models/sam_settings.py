"""The settings that SAM and SAM 2 share."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from segtune.settings import Settings


class SamFamilySettings(Settings):
    """How the network is used; sizes left out are those of the published network."""

    prompts: Literal["none", "box", "point", "box+point"] = Field(
        "none", description="what each object is pointed at with; none: a semantic model without prompts"
    )
    checkpointing: bool = Field(
        False, description="keep only the inputs of encoder blocks for the backward pass: less memory, slower"
    )
    num_tokens: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="N, mask tokens for 3 or more classes without prompts; default: K, at least 10",
    )
    global_blocks: tuple[int, ...] | None = Field(
        None, description="indices of the blocks that attend to the whole image instead of to windows"
    )
    decoder_width: int | None = Field(
        None, ge=16, multiple_of=16, description="channels of neck, prompts and mask decoder"
    )

    def changed_sizes(self) -> dict[str, Any]:
        """The sizes that are not left out."""
        return self.model_dump(exclude_none=True, exclude={"prompts", "checkpointing", "num_tokens"})
