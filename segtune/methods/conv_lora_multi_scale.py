"""Conv-LoRA without a gate: every map goes through the experts of all scales.

What it changes
    As `conv-lora`, with the mean of all experts in place of those that a gate chooses.

Where it attaches
    As `conv-lora`.

Parameters
    `r (I + O) + E (9 r r + r)`: those of `conv-lora` without its gate.

When to use it
    To learn what the gate of `conv-lora` is worth: all experts run for every map, so that it is slower
    and keeps more for the backward pass. It has no noise and no balance loss.

Source
    Zhong et al., Convolution Meets LoRA, 2024, the ablation "Multi-scale". That the scales are fused by
    their mean is our choice.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segtune.methods.conv_lora import ConvLora, ConvLoraSettings


class MultiScaleSettings(ConvLoraSettings):
    """Settings of `conv-lora:multi-scale`."""

    routing: Literal["gate", "all"] = Field(
        "all", description="gate: each map goes to its best experts; all: to every one, their mean counts"
    )


class MultiScale(ConvLora):
    """Conv-LoRA with all scales at once."""

    settings: MultiScaleSettings
