"""Segmentation networks of transformers, from a folder or the model hub, as hf:FOLDER or hf:NAME.

For example `hf:nvidia/segformer-b0-finetuned-ade-512-512`, `hf:openmmlab/upernet-swin-tiny`,
`hf:facebook/mask2former-swin-tiny-ade-semantic`, or `hf:models/mine` for a folder as `save_pretrained`
writes it. SegFormer, UperNet, DPT, BEiT, Data2Vec, MobileNetV2, MobileViT; Mask2Former, MaskFormer,
EoMT, DETR. The network is built from config.json, with a classifier for K classes; the weights beside it
are those of `model.weights=default`; preprocessor_config.json says how images are normalised. Code of a
folder is never run.

Networks that propose masks give logits as SAM's do here: log sum_n P_n(class) P_n(pixel in mask).

A network for images of one size only gets every image resized to that size.

Needs the extra `hf`.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from segtune.models.hf_base import TransformersModel, below
from segtune.models.hf_network import (
    build_segmenter,
    encoder_names,
    head_names,
    runner_for,
    set_checkpointing,
)
from segtune.models.hf_source import Source
from segtune.settings import Settings
from segtune.types import Proposals


class HfModelSettings(Settings):
    """What the folder does not say."""

    checkpointing: bool = Field(
        False, description="keep only the inputs of blocks for the backward pass: less memory, slower"
    )


class HfModel(TransformersModel):
    """A segmentation network of transformers.

    Args:
        variant: "hf:FOLDER" or "hf:NAME".
        num_classes: K, at least 2.
        settings: with or without activation checkpointing.

    Raises:
        MissingExtraError: transformers is not installed.
        UsageError: no such folder or name, or no segmentation network.
    """

    def __init__(self, variant: str, num_classes: int, settings: HfModelSettings) -> None:
        source = Source(variant)
        config = source.config()
        network: Any = build_segmenter(config, num_classes, variant)
        super().__init__(num_classes, source, network)
        self.runner = runner_for(config)
        self.runner.prepare(network)
        self.proposes_masks = self.runner.proposes
        self._head = below("network", head_names(config, num_classes, variant))
        self._encoder = below("network", encoder_names(network))
        if settings.checkpointing:
            set_checkpointing(network, variant)
        self.finish()

    def run(self, images: Tensor) -> Any:
        """Images to maps, logits or proposals, as the architecture has it."""
        return self.runner.encode(self.network, images)

    def decode_maps(self, maps: Any, padded: tuple[int, int]) -> Tensor:
        """To logits [B, K, *, *]."""
        return self.runner.decode(self.network, maps)

    def auxiliary_maps(self, maps: Any) -> dict[str, Tensor]:
        """Logits of the auxiliary classifier, where the network has one."""
        return self.runner.auxiliary(self.network, maps)

    def proposals(self, maps: Any) -> Proposals | None:
        """Masks with their classes, of networks that propose them."""
        return self.runner.proposals(maps)

    def head_names(self) -> tuple[str, ...]:
        """The layers whose shape depends on the number of classes."""
        return self._head

    def encoder_names(self) -> tuple[str, ...]:
        """The part that looks at the image."""
        return self._encoder
