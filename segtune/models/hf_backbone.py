"""Backbones of transformers with a head of our own, as hf-backbone:FOLDER or hf-backbone:NAME.

For example `hf-backbone:facebook/dinov2-base`, `hf-backbone:facebook/dinov3-vits16-pretrain-lvd1689m`,
`hf-backbone:microsoft/swin-tiny-patch4-window7-224`. DINOv2 (also with registers), DINOv3, ViT, BEiT, Swin,
ConvNeXt, Hiera, PVT, ResNet and what else transformers has as a backbone, and plain transformers that give
their hidden states. The weights beside config.json are those of `model.weights=default`; the head is new.

`model.head=linear`: batch norm and a 1x1 convolution on the last map. `model.head=pyramid`: four maps, for a
plain transformer four of its layers brought to scales from 4 to 1/2, in a feature pyramid.

A backbone for images of one size only gets every image resized to that size.

Needs the extra `hf`.

Source
    The linear head: Oquab et al., DINOv2, 2023, section 7.4. The pyramid: Lin et al., Feature Pyramid
    Networks, 2017; scales of a plain transformer: Li et
    al., Exploring Plain Vision Transformer Backbones, 2022.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from segtune.errors import UsageError
from segtune.models.hf_base import TransformersModel, patch_side
from segtune.models.hf_heads import LinearHead, PyramidHead
from segtune.models.hf_network import build, set_checkpointing
from segtune.models.hf_source import Source
from segtune.settings import Settings

_NUM_MAPS = 4


class HfBackboneSettings(Settings):
    """The head, and what the folder does not say."""

    head: Literal["linear", "pyramid"] = Field(
        "pyramid", description="linear: the last map only, for probing; pyramid: four maps, for accuracy"
    )
    norm: bool = Field(True, description="batch norm in front of the linear head")
    width: int = Field(128, ge=8, multiple_of=8, description="channels of the pyramid")
    checkpointing: bool = Field(
        False, description="keep only the inputs of blocks for the backward pass: less memory, slower"
    )


class HfBackbone(TransformersModel):
    """A backbone of transformers with a linear head or a feature pyramid.

    Args:
        variant: "hf-backbone:FOLDER" or "hf-backbone:NAME".
        num_classes: K, at least 2.
        settings: the head, activation checkpointing.

    Raises:
        MissingExtraError: transformers is not installed.
        UsageError: no such folder or name, or nothing that gives feature maps.
    """

    def __init__(self, variant: str, num_classes: int, settings: HfBackboneSettings) -> None:
        source = Source(variant)
        config = source.config()
        num_maps = 1 if settings.head == "linear" else _NUM_MAPS
        network, self._layers = _build(config, num_maps, variant)
        super().__init__(num_classes, source, network)
        if settings.checkpointing:
            set_checkpointing(network, variant)
        channels = network.channels if self._layers is None else [config.hidden_size] * len(self._layers)
        self.decoder: nn.Module = (
            LinearHead(channels, num_classes, norm=settings.norm)
            if settings.head == "linear"
            else PyramidHead(
                channels, num_classes, width=settings.width, plain=patch_side(config) is not None
            )
        )
        self.finish()

    def run(self, images: Tensor) -> Any:
        """Images to maps [B, C, h, w], from fine to coarse or of one scale."""
        if self._layers is None:
            return self.network(images).feature_maps
        side = patch_side(self.network.config)
        assert side is not None, "a network without feature maps is a plain transformer"
        rows, columns = (length // side for length in images.shape[-2:])
        hidden = self.network(images, output_hidden_states=True, **self._any_size()).hidden_states
        norm = getattr(self.network, "layernorm", nn.Identity())
        # Class and register tokens stand in front.
        tokens = [norm(hidden[index])[:, -rows * columns :] for index in self._layers]
        return [each.transpose(1, 2).unflatten(2, (rows, columns)) for each in tokens]

    def decode_maps(self, maps: Any, padded: tuple[int, int]) -> Tensor:
        """To logits [B, K, *, *], at the scale of the finest map."""
        logits: Tensor = self.decoder(maps)
        return logits

    def head_names(self) -> tuple[str, ...]:
        """The last convolution."""
        return ("decoder.classifier",)

    def encoder_names(self) -> tuple[str, ...]:
        """The backbone."""
        return ("network",)

    def _any_size(self) -> dict[str, bool]:
        name = "interpolate_pos_encoding"
        return {name: True} if name in inspect.signature(self.network.forward).parameters else {}


def _build(config: Any, num_maps: int, variant: str) -> tuple[Any, list[int] | None]:
    """The network, and which of its hidden states are maps (None: it gives feature maps itself)."""
    from transformers.models.auto import modeling_auto as auto

    config = copy.deepcopy(config)
    config.return_dict = True
    if type(config) in auto.MODEL_FOR_BACKBONE_MAPPING:
        # Some count what comes before the first stage as a map, too.
        stages = [index for index, name in enumerate(config.stage_names) if name.startswith("stage")]
        chosen = _spread(len(stages), num_maps, patch_side(config) is not None)
        config.out_indices = [stages[number - 1] for number in chosen]
        return build(auto.MODEL_FOR_BACKBONE_MAPPING[type(config)], config, variant), None
    found = auto.MODEL_MAPPING.get(type(config), None)
    if found is None or patch_side(config) is None or not hasattr(config, "num_hidden_layers"):
        raise UsageError(
            f"{variant!r}: the architecture {config.model_type!r} gives no feature maps",
            hint="hf-backbone:... takes DINOv2, DINOv3, ViT, BEiT, Swin, ConvNeXt, Hiera, PVT, ResNet, ...; "
            "a network with a segmentation head is hf:...",
        )
    options = inspect.signature(found.__init__).parameters
    pooling = {"add_pooling_layer": False} if "add_pooling_layer" in options else {}
    return build(found, config, variant, **pooling), _spread(config.num_hidden_layers, num_maps, True)


def _spread(count: int, num_maps: int, plain: bool) -> list[int]:
    """Numbers of maps, counted from 1: evenly among a plain transformer's layers, else the last ones."""
    if plain:
        return sorted({max(1, count * (index + 1) // num_maps) for index in range(num_maps)})
    return list(range(max(1, count - num_maps + 1), count + 1))
