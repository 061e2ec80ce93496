"""Conv-LoRA whose experts differ in the size of their kernel instead of in scale.

What it changes
    As `conv-lora`, with experts that convolve the map as it is with kernels of side 1, 3 and 5.

Where it attaches
    As `conv-lora`.

Parameters
    `r (I + O)`, `k k r r + r` for each kernel of side k, and `2 E r` for the gate.

When to use it
    To learn what the scales of `conv-lora` are worth.

Source
    Zhong et al., Convolution Meets LoRA, 2024, the ablation "Inception". The kernels' sides are our
    choice: 1, 3 and 5 give the published number of parameters.
"""

from __future__ import annotations

from pydantic import Field

from segtune.methods.conv_lora import ConvLora, ConvLoraSettings


class InceptionSettings(ConvLoraSettings):
    """Settings of `conv-lora:inception`."""

    num_experts: int = Field(3, ge=1, description="E")
    scales: tuple[int, ...] | None = Field(
        (1, 1, 1), min_length=1, description="how much each expert enlarges the map"
    )
    kernel_sizes: tuple[int, ...] = Field(
        (1, 3, 5), min_length=1, description="side of the experts' kernels, odd: one for all, or one for each"
    )


class Inception(ConvLora):
    """Conv-LoRA with several kernel sizes at one scale."""

    settings: InceptionSettings
