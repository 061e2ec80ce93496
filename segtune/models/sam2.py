"""SAM 2 and SAM 2.1 for images: without prompts as a semantic model, or with a box or points for each object.

The network is the whole published one but for the memory of videos. Its use is that of SAM (sam.py):
`model.prompts` says whether objects are pointed at; without prompts two classes have one mask, more
classes have N mask tokens with a class each (sam_semantic.py); with prompts the objects' masks are
combined to logits of classes (sam_prompts.py). The whole mask decoder is the head.

The mask is always that of the first token. The published code answers, when it is not training, with
another token's mask where the first one's is unstable; those tokens are not trained here.

Images of any size: they are padded to a multiple of 32 pixels inside, positions are interpolated as
the network does itself. The published weights were trained on images of 1024 x 1024 pixels.

Weights: the model hub's (`facebook/sam2-hiera-tiny`, `facebook/sam2.1-hiera-tiny` ...), files and
folders of transformers' layout, for images or for videos. SAM 2.1 is the same network for images as
SAM 2, trained longer. The original code's files (.pt) have other names and are not read.

Needs the extra `hf`.

Source
    Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024; Ryali et al., Hiera, 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from segtune.models.base import PublishedWeights, SegModel, input_spec
from segtune.models.proposals import combine
from segtune.models.sam2_network import ImageEncoder, Sam2Sizes, build_network
from segtune.models.sam_layout import both_tables
from segtune.models.sam_network import image_positions
from segtune.models.sam_prompts import KINDS, combine_objects, embed_prompts
from segtune.models.sam_semantic import (
    TokenClassifier,
    first_masks,
    fit_tokens,
    propose,
    run_decoder,
)
from segtune.models.sam_settings import SamFamilySettings
from segtune.models.sam_sites import head_sites, thirds
from segtune.models.sections import Section
from segtune.types import Part, Prompts, Proposals, Site, SiteKind

_SIZES = {
    "tiny": Sam2Sizes(),
    "small": Sam2Sizes(blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "base-plus": Sam2Sizes(
        width=112, blocks=(2, 3, 16, 3), heads=(2, 4, 8, 16), global_blocks=(12, 16, 20), background=14
    ),
    "large": Sam2Sizes(
        width=144,
        blocks=(2, 6, 36, 4),
        heads=(2, 4, 8, 16),
        windows=(8, 4, 16, 8),
        global_blocks=(23, 33, 43),
    ),
}

_HUB = "https://huggingface.co/facebook/{name}/resolve/main/model.safetensors"

_OF_VIDEOS = (
    "memory_",
    "mask_downsample",
    "object_pointer_proj",
    "temporal_positional_encoding_projection_layer",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "occlusion_spatial_embedding_parameter",
)
"""How tensors begin that only videos need."""

_BLOCK_KINDS = {
    "": SiteKind.BLOCK,
    "layer_norm1": SiteKind.NORM,
    "attn.qkv": SiteKind.ATTENTION_QKV,
    "attn.proj": SiteKind.ATTENTION_PROJ,
    "layer_norm2": SiteKind.NORM,
    "mlp.proj_in": SiteKind.MLP,
    "mlp.proj_out": SiteKind.MLP,
    "proj": SiteKind.LINEAR,
}
"""The last one only where the number of channels changes."""


class Sam2Settings(SamFamilySettings):
    """What is built; sizes left out are those of the published network."""

    width: int | None = Field(None, ge=1, description="channels of the first of four stages")
    blocks: tuple[int, ...] | None = Field(None, description="blocks of each stage")
    heads: tuple[int, ...] | None = Field(None, description="attention heads of each stage")
    windows: tuple[int, ...] | None = Field(
        None, description="side of an attention window in each stage, in positions"
    )
    background: int | None = Field(None, ge=1, description="side of the table of positions")


class Sam2(SegModel):
    """SAM 2, with prompts or without.

    Args:
        variant: the registered name.
        num_classes: K, at least 2.
        settings: prompts, checkpointing, mask tokens, and sizes other than the published ones.

    Raises:
        MissingExtraError: transformers is not installed.
        UsageError: no network can have these sizes.
    """

    def __init__(self, variant: str, num_classes: int, settings: Sam2Settings) -> None:
        changed = settings.changed_sizes()
        sizes = replace(_SIZES[variant.partition("-hiera-")[2]], **changed)
        sizes.check()
        super().__init__(num_classes, input_spec(3, multiple=sizes.multiple))
        self.variant = variant
        self._global_blocks = frozenset(sizes.global_blocks)
        network = build_network(sizes, variant)
        self.vision_encoder = ImageEncoder(network.vision_encoder, settings.checkpointing)
        self.shared_image_embedding: Any = network.shared_image_embedding
        self.prompt_encoder: Any = network.prompt_encoder
        self.mask_decoder: Any = network.mask_decoder
        self.no_memory_embedding: nn.Parameter = network.no_memory_embedding  # [1, 1, D]
        self.class_tokens: nn.Embedding | None = None
        self.classifier: TokenClassifier | None = None
        self.prompted = KINDS[settings.prompts]
        self.proposes_masks = num_classes > 2 and not self.prompted
        if self.proposes_masks:
            num_tokens = settings.num_tokens or max(10, num_classes)
            self.class_tokens = nn.Embedding(num_tokens, sizes.decoder_width)
            self.classifier = TokenClassifier(sizes.decoder_width, num_tokens, num_classes)
        self.unused = frozenset(name for name, _ in self.named_parameters() if self._is_unused(name))

    def encode_maps(self, images: Tensor) -> list[Tensor]:
        """Images to the neck's maps [B, D, h, w] at 1/4, 1/8 and 1/16 of their size."""
        levels: list[Tensor] = self.vision_encoder(images)
        return levels

    def sections(self) -> tuple[Section, ...]:
        """The patch embedding, the encoder's blocks, the neck."""
        return tuple(self.vision_encoder.sections())

    def decode_maps(self, maps: list[Tensor], padded: tuple[int, int]) -> Tensor:
        """Maps to logits [B, K, H / 4, W / 4]."""
        proposals = self.proposals(maps)
        if proposals is not None:
            return combine(proposals)
        foreground = self._masks(maps, self._no_prompt(len(maps[0])))
        return torch.cat([torch.zeros_like(foreground), foreground], dim=1)

    def decode_prompted(self, maps: list[Tensor], padded: tuple[int, int], prompts: Prompts) -> Tensor:
        """Maps and the objects pointed at to logits [B, K, H / 4, W / 4]."""
        return combine_objects(self.object_masks(maps, padded, prompts), prompts.classes, self.num_classes)

    def object_masks(self, maps: list[Tensor], padded: tuple[int, int], prompts: Prompts) -> Tensor:
        """The published network's mask of each object.

        Args:
            maps: of `encode_maps`.
            padded: height and width of the padded images in pixels.
            prompts: of N objects.

        Returns:
            Mask logits [B, N, H / 4, W / 4]; those of objects of class -1 mean nothing.
        """
        return self._masks(maps, embed_prompts(self.prompt_encoder, self.prompted, prompts, padded))

    def proposals(self, maps: list[Tensor]) -> Proposals | None:
        """Maps to the masks and classes of N tokens; None for two classes and with prompts."""
        if self.class_tokens is None or self.classifier is None:
            return None
        return propose(
            self.mask_decoder,
            self.class_tokens.weight,
            self.classifier,
            self._embeddings(maps),
            self._positions(maps),
            sparse=self._no_prompt(len(maps[0])),
            fine=self._fine(maps),
        )

    def sites(self) -> tuple[Site, ...]:
        """Patch embedding, encoder blocks with their layers, neck, and the mask decoder as the head."""
        return tuple(self._list_sites())

    def head_names(self) -> tuple[str, ...]:
        """The classifier of mask tokens; for two classes, and with prompts, nothing is new."""
        return () if self.classifier is None else ("classifier",)

    def encoder_names(self) -> tuple[str, ...]:
        """The image encoder with its neck."""
        return ("vision_encoder",)

    def published(self) -> Mapping[str, PublishedWeights]:
        """The hub's."""
        repository = f"facebook/{self.variant}"
        return {
            repository: PublishedWeights(
                url=_HUB.format(name=self.variant),
                filename=f"{repository.replace('/', '-')}.safetensors",
                sha256="",
            )
        }

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accepts files of the video model, and files for another number of classes."""
        state = {name: tensor for name, tensor in state.items() if not name.startswith(_OF_VIDEOS)}
        return fit_tokens(both_tables(state), self.class_tokens)

    def _masks(self, maps: list[Tensor], sparse: Tensor) -> Tensor:
        """Prompts' tokens [B, N, T, D] to mask logits [B, N, H / 4, W / 4]."""
        tokens, image = run_decoder(
            self.mask_decoder,
            self.mask_decoder.mask_tokens.weight,
            self._embeddings(maps),
            self._positions(maps),
            sparse=sparse,
            fine=self._fine(maps),
        )
        first = tokens[:, :, :1].flatten(0, 1)  # [B N, 1, D]
        masks = first_masks(self.mask_decoder, first, image.flatten(0, 1))
        return masks.reshape(*sparse.shape[:2], *masks.shape[2:])

    def _embeddings(self, maps: list[Tensor]) -> Tensor:
        """The coarsest map, marked as a single image's without a mask given."""
        no_mask: Tensor = self.prompt_encoder.no_mask_embed.weight
        return maps[-1] + self.no_memory_embedding.view(1, -1, 1, 1) + no_mask.view(1, -1, 1, 1)

    def _fine(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.mask_decoder.conv_s0(maps[0]), self.mask_decoder.conv_s1(maps[1])

    def _positions(self, maps: list[Tensor]) -> Tensor:
        return image_positions(self.shared_image_embedding, (maps[-1].shape[2], maps[-1].shape[3]))

    def _no_prompt(self, batch: int) -> Tensor:
        """The two empty points [B, 1, 2, D] that stand for "no prompt"."""
        weight: Tensor = self.prompt_encoder.not_a_point_embed.weight
        return weight.expand(batch, 1, 2, -1)

    def _is_unused(self, name: str) -> bool:
        hyper_networks = "mask_decoder.output_hypernetworks_mlps."
        if name.startswith(hyper_networks):
            return not name.startswith(f"{hyper_networks}0.")
        unused = [
            "prompt_encoder.mask_embed.",
            "mask_decoder.iou_prediction_head.",
            "mask_decoder.pred_obj_score_head.",
        ]
        if not self.prompted:
            unused.append("prompt_encoder.point_embed.")
        if self.class_tokens is not None:
            unused.append("mask_decoder.mask_tokens.")
        return name.startswith(tuple(unused))

    def _list_sites(self) -> Iterator[Site]:
        backbone, prefix = self.vision_encoder.backbone, "vision_encoder.backbone"
        projection = f"{prefix}.patch_embed.projection"
        yield Site(
            name=projection,
            kind=SiteKind.CONV,
            module=self.get_submodule(projection),
            part=Part.ENCODER,
        )
        for index, block in enumerate(backbone.blocks):
            for name, kind in _BLOCK_KINDS.items():
                if name == "proj" and not hasattr(block, "proj"):
                    continue
                module = block.get_submodule(name)
                yield Site(
                    name=f"{prefix}.blocks.{index}.{name}".rstrip("."),
                    kind=kind,
                    module=module,
                    part=Part.ENCODER,
                    block=index,
                    windowed=index not in self._global_blocks,
                    channel_axis=-1,
                    splits=thirds(module) if kind is SiteKind.ATTENTION_QKV else (),
                )
        for index, convolution in enumerate(self.vision_encoder.neck.convs):
            yield Site(
                name=f"vision_encoder.neck.convs.{index}",
                kind=SiteKind.CONV,
                module=convolution,
                part=Part.NECK,
            )
        yield from head_sites(self)
