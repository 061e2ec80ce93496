"""Prompts made from an image's high frequencies and its patches, added to the input of every block.

What it changes
    A block's input x becomes `x + U gelu(M_i f)`, where f is made once for each image, with d channels on
    the grid of the patches: `f = P h + G e`. h is the image without its low frequencies (a square around
    frequency 0 that holds `mask_ratio` of the spectrum is removed, and absolute values are taken), P cuts
    it into patches as the network does with the image, and e is the network's own patch embedding.
    M_i belongs to block i, U to all blocks. Class tokens and the like get nothing added.

    `U = 0` at the start, so that the model starts as the base; the authors start with random numbers.

Where it attaches
    The patch embedding (the first convolution outside of blocks, if its stride is its kernel) and the
    blocks of the encoder that have as many channels.

Parameters
    With `d = C / reduction` for C channels: `d d + d` for each block, and at the patch embedding
    `k k I d + d` (P, for I image channels and patches of k x k), `C d + d` (G) and `C d + C` (U).

When to use it
    Where edges and textures matter that the network was not trained to see: camouflage, shadows, lesions.
    It does not merge.

Source
    Chen et al., SAM Fails to Segment Anything? SAM-Adapter, 2023, section 3; the prompts are those of Liu
    et al., Explicit Visual Prompting for Low-Level Structure Segmentations, 2023, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segtune.errors import NoSiteError, UsageError
from segtune.methods.attach import Operation, full_precision
from segtune.methods.base import Host, Method, PlacementSettings
from segtune.types import Access, Site, SiteKind


class SamAdapterSettings(PlacementSettings):
    """Settings of `sam-adapter`."""

    reduction: int = Field(16, ge=1, description="channels of a block for each channel of f")
    mask_ratio: float = Field(
        0.25, ge=0, lt=1, description="share of the spectrum, around frequency 0, that is removed"
    )


def high_frequencies(images: Tensor, mask_ratio: float) -> Tensor:
    """Images without their low frequencies.

    Args:
        images: [B, I, H, W], float32.
        mask_ratio: share of the spectrum that is removed, in [0, 1).

    Returns:
        Absolute values, [B, I, H, W].
    """
    height, width = images.shape[-2:]
    reach = int(math.sqrt(height * width * mask_ratio) / 2)  # of the square, in frequencies each way
    rows, columns = (
        torch.fft.fftfreq(count, 1 / count, device=images.device) for count in (height, width)
    )  # -count / 2 .. count / 2
    low = ((rows >= -reach) & (rows < reach))[:, None] & ((columns >= -reach) & (columns < reach))
    spectrum = torch.fft.fft2(images).masked_fill(low, 0)
    high: Tensor = torch.fft.ifft2(spectrum).real.abs()
    return high


class FeatureOperation(Operation):
    """Makes f where the patches are made, and keeps it for the blocks; changes nothing itself.

    Args:
        layer: the patch embedding, nn.Conv2d without groups.
        width: d.
        mask_ratio: share of the spectrum that is removed.
    """

    features: Tensor | None = None
    """f of the last forward's images, [B, h, w, d]."""

    def __init__(self, layer: nn.Conv2d, *, width: int, mask_ratio: float) -> None:
        super().__init__()
        channels = layer.out_channels
        self.mask_ratio = mask_ratio
        self.patches = nn.Parameter(torch.empty(width, layer.in_channels, *layer.kernel_size))  # P
        self.patches_bias = nn.Parameter(torch.zeros(width))
        self.embedding = nn.Parameter(torch.empty(width, channels))  # G
        self.embedding_bias = nn.Parameter(torch.zeros(width))
        self.up = nn.Parameter(torch.zeros(channels, width))  # U
        self.up_bias = nn.Parameter(torch.zeros(channels))
        # uniform in +-1/sqrt(fan in), as the layers themselves start
        for weight in (self.patches, self.embedding):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def __getstate__(self) -> dict[str, Any]:
        # what the last forward left behind belongs to its graph
        return {key: value for key, value in self.__dict__.items() if key != "features"}

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Y as it is; f is kept."""
        assert isinstance(layer, nn.Conv2d)
        with full_precision(x.device):
            images = high_frequencies(x.to(self.patches.dtype), self.mask_ratio)
        patches = layer._conv_forward(
            images.to(x.dtype), self.patches.to(x.dtype), self.patches_bias.to(x.dtype)
        )
        embedding = F.linear(
            y.permute(0, 2, 3, 1), self.embedding.to(y.dtype), self.embedding_bias.to(y.dtype)
        )
        self.features = patches.permute(0, 2, 3, 1) + embedding
        return y

    def merge_refusal(self) -> str | None:
        """It depends on the image."""
        return "what it adds depends on the image's high frequencies, which no weight of the model sees"


class PromptOperation(Operation):
    """`x + U gelu(M f)` at the input of one block.

    Args:
        width: d.
        source: of f and U.
        axis: of the channels in x, 1 or -1.
        name: of the site, for messages.
    """

    def __init__(self, width: int, *, source: FeatureOperation, axis: int, name: str) -> None:
        super().__init__()
        self.axis = axis
        self.name = name
        self.sources = (source,)  # in a tuple, as it is a child of another layer
        self.mix = nn.Parameter(torch.empty(width, width))  # M
        self.mix_bias = nn.Parameter(torch.zeros(width))
        nn.init.kaiming_uniform_(self.mix, a=math.sqrt(5))

    def before(self, x: Tensor) -> Tensor:
        """X with the prompt added."""
        (source,) = self.sources
        features = source.features
        assert features is not None, "the patch embedding was not called"
        hidden = F.gelu(F.linear(features, self.mix.to(features.dtype), self.mix_bias.to(features.dtype)))
        prompt = F.linear(hidden, source.up.to(hidden.dtype), source.up_bias.to(hidden.dtype))
        return x + self._shaped(prompt, x).to(x.dtype)

    def _shaped(self, prompt: Tensor, x: Tensor) -> Tensor:
        """The prompt [B, h, w, C] in the form of x."""
        if x.ndim == 3:  # [B, further tokens + h w, C]
            sequence = prompt.flatten(1, 2)
            further = x.shape[1] - sequence.shape[1]
            if further >= 0:
                return F.pad(sequence, (0, 0, further, 0))
        shaped = prompt.permute(0, 3, 1, 2) if self.axis == 1 else prompt
        if shaped.shape != x.shape:
            raise UsageError(
                f"sam-adapter: {self.name} takes {tuple(x.shape)}, and the patches lie on a grid of"
                f" {prompt.shape[1]} x {prompt.shape[2]}",
                hint="leave blocks of another grid out with method.exclude",
            )
        return shaped

    def merge_refusal(self) -> str | None:
        """As of f."""
        return "what it adds depends on the image's high frequencies, which no weight of the model sees"


class SamAdapter(Method):
    """Prompts from high frequencies and patch embedding."""

    settings: SamAdapterSettings

    def apply(self, host: Host) -> None:
        """Attaches a `FeatureOperation` to the patch embedding and a `PromptOperation` to every block."""
        patches = next((site for site in host.sites if _is_patch_embedding(site)), None)
        if patches is None:
            kinds = sorted({str(site.kind) for site in host.sites})
            raise NoSiteError(
                "sam-adapter needs a patch embedding (a convolution outside of blocks whose stride is its"
                " kernel), and this model has no such site",
                hint=f"the model offers: {', '.join(kinds)}; for other networks: method=adapter",
            )
        layer = patches.module
        assert isinstance(layer, nn.Conv2d)
        alike = [
            site for site in host.sites if site.channels == layer.out_channels and site.part is patches.part
        ]
        chosen = host.select({SiteKind.BLOCK}, self.settings, "sam-adapter", among=alike)
        width = self._width(layer.out_channels)
        source = FeatureOperation(layer, width=width, mask_ratio=self.settings.mask_ratio)
        host.attach(patches, "sam-adapter", source)
        for site in chosen:
            operation = PromptOperation(width, source=source, axis=site.channel_axis, name=site.name)
            host.attach(site, "sam-adapter", operation)

    def _width(self, channels: int) -> int:
        return max(1, channels // self.settings.reduction)

    def num_parameters(self, site: Site) -> int:
        """`d d + d` for a block; for the patch embedding `k k I d + d + C d + d + C d + C`."""
        if site.kind is SiteKind.BLOCK:
            assert site.channels is not None
            width = self._width(site.channels)
            return width * width + width
        layer = site.module
        assert isinstance(layer, nn.Conv2d)
        channels, width = layer.out_channels, self._width(layer.out_channels)
        patches = layer.in_channels * math.prod(layer.kernel_size) * width + width
        return patches + 2 * channels * width + width + channels


def _is_patch_embedding(site: Site) -> bool:
    layer = site.module
    return (
        site.kind is SiteKind.CONV
        and site.block is None
        and site.access is Access.CALL
        and isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.stride == layer.kernel_size != (1, 1)
    )
