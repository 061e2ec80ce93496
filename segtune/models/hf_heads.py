"""Small heads that turn the feature maps of a backbone into logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 8


class LinearHead(nn.Module):
    """Batch norm and a 1x1 convolution on the last map, as backbones are probed.

    Args:
        channels: of each map.
        num_classes: K.
        norm: with the batch norm, which has no scale and shift of its own use before a linear layer.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels[-1]) if norm else nn.Identity()
        self.classifier = nn.Conv2d(channels[-1], num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, C, h, w] to logits [B, K, h, w] of the last."""
        logits: Tensor = self.classifier(self.norm(maps[-1]))
        return logits


class PyramidHead(nn.Module):
    """A feature pyramid: maps of several scales, added up from coarse to fine.

    Maps that all have one scale, those of a plain transformer, are first brought to several: the first
    is enlarged four times, the second twice, the last is halved.

    Args:
        channels: of each map, from fine to coarse.
        num_classes: K.
        width: channels of the pyramid.
        plain: whether all maps have one scale.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, *, width: int, plain: bool) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            _rescale(count, index if plain else len(_STEPS)) for index, count in enumerate(channels)
        )
        self.lateral = nn.ModuleList(_convolution(count, width, 1) for count in channels)
        self.smooth = nn.ModuleList(_convolution(width, width, 3) for _ in channels)
        self.fuse = _convolution(width * len(channels), width, 3)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, C, h, w] to logits [B, K, h, w] at the size of the finest."""
        steps = zip(self.scales, self.lateral, maps, strict=True)
        levels = [lateral(scale(each)) for scale, lateral, each in steps]
        for index in range(len(levels) - 1, 0, -1):
            levels[index - 1] = levels[index - 1] + _like(levels[index], levels[index - 1])
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        together = torch.cat([_like(level, smoothed[0]) for level in smoothed], dim=1)
        logits: Tensor = self.classifier(self.fuse(together))
        return logits


_STEPS = (4.0, 2.0, 1.0, 0.5)


def _rescale(channels: int, index: int) -> nn.Module:
    """From the one scale of a plain transformer to the scale of the level."""
    factor = _STEPS[index] if index < len(_STEPS) else 1.0
    if factor == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            nn.GELU(),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
        )
    if factor == 2:
        return nn.ConvTranspose2d(channels, channels, 2, stride=2)
    return nn.Identity() if factor == 1 else nn.MaxPool2d(2, ceil_mode=True)


def _convolution(num_inputs: int, num_outputs: int, side: int) -> nn.Sequential:
    # Group norm: its statistics depend neither on the batch nor on how long it was trained.
    return nn.Sequential(
        nn.Conv2d(num_inputs, num_outputs, side, padding=side // 2, bias=False),
        nn.GroupNorm(_GROUPS, num_outputs),
        nn.ReLU(inplace=True),
    )


def _like(x: Tensor, other: Tensor) -> Tensor:
    if x.shape[-2:] == other.shape[-2:]:
        return x
    return F.interpolate(x, other.shape[-2:], mode="bilinear", align_corners=False)
