"""U-Net of any depth and width, for images with any number of channels; starts from random weights.

A contracting path of two 3x3 convolutions per level, an expanding path that doubles the resolution
and joins the map of the same level, and a 1x1 convolution as classifier. Unlike the original, the
convolutions are padded, so that the logits cover the whole image, and normalised by default.

Parameters at depth 4, width 64, batch norm and transposed convolutions: 31.04 M (3 channels, K = 2).
Studies that speak of "a U-Net" count their own: one that tunes it with LoRA on GTA5 states 35.5 M.

Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", 2015, Figure 1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from segtune.models.base import SegModel, input_spec
from segtune.models.sections import Section, run_sections
from segtune.models.sites import scan_sites
from segtune.settings import Settings
from segtune.types import Part, Site


class UNetSettings(Settings):
    """Size and layers of a U-Net."""

    depth: int = Field(4, ge=1, le=8, description="number of times the resolution is halved")
    width: int = Field(64, ge=1, le=1024, description="channels of the first level; doubled at each level")
    norm: Literal["batch", "group", "instance", "none"] = Field(
        "batch", description="normalisation after each 3x3 convolution"
    )
    up: Literal["transpose", "bilinear"] = Field(
        "transpose", description="up-convolution: 2x2 transposed, or bilinear and a 1x1 convolution"
    )
    channels: int = Field(3, ge=1, le=1024, description="channels of the input image")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of channels dropped at the bottom level")


class UNet(SegModel):
    """U-Net with padded convolutions.

    Args:
        variant: the registered name.
        num_classes: K, at least 2.
        settings: depth, width and layers.
    """

    def __init__(self, variant: str, num_classes: int, settings: UNetSettings) -> None:
        multiple = 2**settings.depth
        # Two pixels at the bottom level: norms over one single value are undefined while training.
        super().__init__(num_classes, input_spec(settings.channels, multiple=multiple, minimum=2 * multiple))
        self.variant = variant
        widths = [settings.width * 2**level for level in range(settings.depth + 1)]
        inputs = [settings.channels, *widths]
        self.encoder = nn.ModuleList(
            _Convolutions(inputs[level], widths[level], settings.norm) for level in range(settings.depth + 1)
        )
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout2d(settings.dropout)
        self.decoder = nn.ModuleList(
            _Up(widths[level], settings.norm, settings.up) for level in reversed(range(settings.depth))
        )
        self.head = nn.Conv2d(settings.width, num_classes, 1)
        self._sites = self._scan()

    def encode_maps(self, images: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] to maps [B, width * 2^l, H / 2^l, W / 2^l] of the levels l = 0..depth."""
        maps: list[Tensor] = run_sections(self.sections(), images)
        return maps

    def sections(self) -> tuple[Section, ...]:
        """Each level; the maps of all levels so far."""
        first = Section("encoder.0", lambda images: [self._run_level(0, images)])
        return first, *(
            Section(f"encoder.{level}", partial(self._add_level, level))
            for level in range(1, len(self.encoder))
        )

    def _add_level(self, level: int, maps: list[Tensor]) -> list[Tensor]:
        return [*maps, self._run_level(level, self.pool(maps[-1]))]

    def _run_level(self, level: int, hidden: Tensor) -> Tensor:
        found: Tensor = self.encoder[level](hidden)
        return self.dropout(found) if level == len(self.encoder) - 1 else found

    def decode_maps(self, maps: list[Tensor], padded: tuple[int, int]) -> Tensor:
        """Maps of all levels to logits [B, K, H, W]."""
        hidden = maps[-1]
        for level, skip in zip(self.decoder, reversed(maps[:-1]), strict=True):
            hidden = level(hidden, skip)
        logits: Tensor = self.head(hidden)
        return logits

    def sites(self) -> tuple[Site, ...]:
        """Convolutions, up-convolutions, norms, the levels as blocks, and the head."""
        return self._sites

    def head_names(self) -> tuple[str, ...]:
        """The 1x1 convolution at the end."""
        return ("head",)

    def _scan(self) -> tuple[Site, ...]:
        levels = [f"encoder.{index}" for index in range(len(self.encoder))]
        levels += [f"decoder.{index}" for index in range(len(self.decoder))]
        return scan_sites(
            self,
            part=lambda name: Part.ENCODER if name.startswith("encoder.") else Part.DECODER,
            head=self.head_names(),
            blocks=levels,
        )


class _Convolutions(nn.Sequential):
    """Twice: 3x3 convolution, norm, ReLU."""

    def __init__(self, num_inputs: int, num_outputs: int, norm: str) -> None:
        layers: dict[str, nn.Module] = {}
        for index, channels in ((1, num_inputs), (2, num_outputs)):
            layers[f"conv{index}"] = _he_normal(
                nn.Conv2d(channels, num_outputs, 3, padding=1, bias=norm == "none")
            )
            if norm != "none":
                layers[f"norm{index}"] = _make_norm(norm, num_outputs)
            layers[f"relu{index}"] = nn.ReLU(inplace=True)
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class _Up(nn.Module):
    """Doubles the resolution, halves the channels, joins the map of the contracting path."""

    def __init__(self, num_outputs: int, norm: str, up: str) -> None:
        super().__init__()
        if up == "transpose":
            self.up: nn.Module = nn.ConvTranspose2d(2 * num_outputs, num_outputs, 2, stride=2)
        else:
            self.up = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Conv2d(2 * num_outputs, num_outputs, 1),
            )
        self.convolutions = _Convolutions(2 * num_outputs, num_outputs, norm)

    def forward(self, hidden: Tensor, skip: Tensor) -> Tensor:
        """Maps [B, 2 O, h, w] and [B, O, 2 h, 2 w] to [B, O, 2 h, 2 w]."""
        joined: Tensor = self.convolutions(torch.cat([skip, self.up(hidden)], dim=1))
        return joined


def _he_normal(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def _make_norm(norm: str, channels: int) -> nn.Module:
    match norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(math.gcd(8, channels), channels)
        case _:
            return nn.InstanceNorm2d(channels, affine=True)
