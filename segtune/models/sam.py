"""Segment Anything (SAM): without prompts as a semantic model, or with a box or points for each object.

The network is the whole published one, so that its weights come in and go out as they are. It takes
images of any size; the published weights were trained on images whose longer side is 1024 pixels.

Without prompts (`model.prompts=none`, the default) the mask decoder gets SAM's own embedding for
"no prompt". Two classes: the first mask token with its hyper-network gives one map z; the logits are
0 for the background and z for the foreground, so that softmax is sigmoid(z) and cross entropy is that
of the published mask. The first of the four tokens is the one that SAM answers with where a single
mask is asked for. The other three stay in the attention, as in pretraining; their hyper-networks, the IoU
head and the encoders of points, boxes and masks have no part in the output.

More classes: N mask tokens with the first hyper-network, each with a class (sam_semantic.py). They
start as the first mask token plus noise, without which they would stay equal, and with a preference
for one class each, without which cross entropy could not tell them apart. The loss `set_matching` trains
the proposals themselves, as Conv-LoRA does; every other loss trains the logits they are combined into.

With prompts (`model.prompts=box`, `point` or `box+point`) each object of an image has a class and is
pointed at; the published network gives its mask, and the masks are combined to logits of classes
(sam_prompts.py). Nothing is new then, for any number of classes: the model can be scored as it was
published (`zero-shot`). Where prompts come from: data/prompts.py in training and scoring,
`segtune predict --prompts` in prediction.

The whole mask decoder is the head: every method trains it, unless `method.train_head=false`.

Weights: the model hub's (`facebook/sam-vit-base` ...), files and folders of transformers' layout, and
checkpoints of the original code's. Positions are interpolated to the grid of the images; those of
1024 x 1024 are used as they are.

Needs the extra `hf`.

Source
    Kirillov et al., Segment Anything, 2023; without prompts and for several classes: Zhong et al.,
    Convolution Meets LoRA, 2024, section 3.3.
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
from segtune.models.sam_layout import to_transformers
from segtune.models.sam_network import ImageEncoder, SamSizes, build_network, image_positions
from segtune.models.sam_prompts import KINDS, combine_objects, embed_prompts, is_unused_embedding
from segtune.models.sam_semantic import TokenClassifier, fit_tokens, propose
from segtune.models.sam_settings import SamFamilySettings
from segtune.models.sam_sites import head_sites, thirds
from segtune.models.sections import Section
from segtune.types import Part, Prompts, Proposals, Site, SiteKind

_SIZES = {
    "sam-vit-base": SamSizes(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "sam-vit-large": SamSizes(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "sam-vit-huge": SamSizes(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
}

_ORIGINAL = {
    "sam-vit-base": ("sam_vit_b_01ec64", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    "sam-vit-large": ("sam_vit_l_0b3195", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "sam-vit-huge": ("sam_vit_h_4b8939", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
}
"""File and sha256 of the original code's checkpoints."""

_HUB = "https://huggingface.co/{repository}/resolve/main/{file}"
_MEDICAL = "wanglab/medsam-vit-base"

_BLOCK_KINDS = {
    "": SiteKind.BLOCK,
    "layer_norm1": SiteKind.NORM,
    "attn.tokens": SiteKind.TOKENS,
    "attn.qkv": SiteKind.ATTENTION_QKV,
    "attn.proj": SiteKind.ATTENTION_PROJ,
    "layer_norm2": SiteKind.NORM,
    "mlp.lin1": SiteKind.MLP,
    "mlp.lin2": SiteKind.MLP,
}
_NECK_KINDS = {
    "conv1": SiteKind.CONV,
    "layer_norm1": SiteKind.NORM,
    "conv2": SiteKind.CONV,
    "layer_norm2": SiteKind.NORM,
}


class SamSettings(SamFamilySettings):
    """What is built; sizes left out are those of the published network."""

    width: int | None = Field(None, ge=1, description="channels of the image encoder")
    depth: int | None = Field(None, ge=1, description="blocks of the image encoder")
    heads: int | None = Field(None, ge=1, description="attention heads of the image encoder")
    window: int | None = Field(None, ge=1, description="side of an attention window, in patches")
    patch_size: int | None = Field(None, ge=1, description="side of a patch, in pixels")
    image_size: int | None = Field(
        None, ge=1, description="side of the images that positions are stored for, in pixels"
    )


class Sam(SegModel):
    """SAM, with prompts or without.

    Args:
        variant: the registered name.
        num_classes: K, at least 2.
        settings: prompts, checkpointing, mask tokens, and sizes other than the published ones.

    Raises:
        MissingExtraError: transformers is not installed.
        UsageError: no network can have these sizes.
    """

    def __init__(self, variant: str, num_classes: int, settings: SamSettings) -> None:
        changed = settings.changed_sizes()
        sizes = replace(_SIZES[variant], **changed)
        sizes.check()
        super().__init__(num_classes, input_spec(3, multiple=sizes.patch_size))
        self.variant = variant
        self._global_blocks = frozenset(sizes.global_blocks)
        network = build_network(sizes, variant)
        self.vision_encoder = ImageEncoder(network.vision_encoder, settings.checkpointing)
        self.shared_image_embedding: Any = network.shared_image_embedding
        self.prompt_encoder: Any = network.prompt_encoder
        self.mask_decoder: Any = network.mask_decoder
        self.class_tokens: nn.Embedding | None = None
        self.classifier: TokenClassifier | None = None
        self.prompted = KINDS[settings.prompts]
        self.proposes_masks = num_classes > 2 and not self.prompted
        if self.proposes_masks:
            num_tokens = settings.num_tokens or max(10, num_classes)
            self.class_tokens = nn.Embedding(num_tokens, sizes.decoder_width)
            self.classifier = TokenClassifier(sizes.decoder_width, num_tokens, num_classes)
        self.unused = frozenset(name for name, _ in self.named_parameters() if self._is_unused(name))

    def encode_maps(self, images: Tensor) -> Tensor:
        """Images to the image encoder's embeddings [B, D, h, w]."""
        embeddings: Tensor = self.vision_encoder(images)
        return embeddings

    def sections(self) -> tuple[Section, ...]:
        """The patch embedding, the encoder's blocks, the neck."""
        return tuple(self.vision_encoder.sections())

    def decode_maps(self, maps: Tensor, padded: tuple[int, int]) -> Tensor:
        """Embeddings to logits [B, K, 4 h, 4 w]."""
        proposals = self.proposals(maps)
        if proposals is not None:
            return combine(proposals)
        masks, _ = self.mask_decoder(
            image_embeddings=maps,
            image_positional_embeddings=self._positions(maps).repeat(len(maps), 1, 1, 1),
            sparse_prompt_embeddings=None,
            dense_prompt_embeddings=self._no_prompt(),
            multimask_output=False,
        )
        foreground: Tensor = masks[:, 0]  # [B, 1, 4 h, 4 w]
        return torch.cat([torch.zeros_like(foreground), foreground], dim=1)

    def decode_prompted(self, maps: Tensor, padded: tuple[int, int], prompts: Prompts) -> Tensor:
        """Embeddings and the objects pointed at to logits [B, K, 4 h, 4 w]."""
        return combine_objects(self.object_masks(maps, padded, prompts), prompts.classes, self.num_classes)

    def object_masks(self, maps: Tensor, padded: tuple[int, int], prompts: Prompts) -> Tensor:
        """The published network's mask of each object.

        Args:
            maps: [B, D, h, w], of `encode_maps`.
            padded: height and width of the padded images in pixels.
            prompts: of N objects.

        Returns:
            Mask logits [B, N, 4 h, 4 w]; those of objects of class -1 mean nothing.
        """
        masks: Tensor = self.mask_decoder(
            image_embeddings=maps,
            image_positional_embeddings=self._positions(maps).repeat(len(maps), 1, 1, 1),
            sparse_prompt_embeddings=embed_prompts(self.prompt_encoder, self.prompted, prompts, padded),
            dense_prompt_embeddings=self._no_prompt(),
            multimask_output=False,
        )[0]
        return masks[:, :, 0]

    def proposals(self, maps: Tensor) -> Proposals | None:
        """Embeddings to the masks and classes of N tokens; None for two classes, which have one mask."""
        if self.class_tokens is None or self.classifier is None:
            return None
        return propose(
            self.mask_decoder,
            self.class_tokens.weight,
            self.classifier,
            maps + self._no_prompt(),
            self._positions(maps),
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
        """The hub's (first) and the original code's; for ViT-B MedSAM's too."""
        repository = f"facebook/{self.variant}"
        name, sha256 = _ORIGINAL[self.variant]
        found = {
            repository: PublishedWeights(
                url=_HUB.format(repository=repository, file="model.safetensors"),
                filename=f"{repository.replace('/', '-')}.safetensors",
                sha256="",
            ),
            "segment-anything": PublishedWeights(
                url=f"https://dl.fbaipublicfiles.com/segment_anything/{name}.pth",
                filename=f"{name}.pth",
                sha256=sha256,
            ),
        }
        if self.variant == "sam-vit-base":
            found[_MEDICAL] = PublishedWeights(
                url=_HUB.format(repository=_MEDICAL, file="medsam_vit_b.pth"),
                filename="medsam_vit_b.pth",
                sha256="",
            )
        return found

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accepts the original code's layout, and files for another number of classes."""
        return fit_tokens(to_transformers(state), self.class_tokens)

    def _positions(self, maps: Tensor) -> Tensor:
        grid = (maps.shape[2], maps.shape[3])
        return image_positions(self.shared_image_embedding, grid)

    def _no_prompt(self) -> Tensor:
        """The dense embedding [1, D, 1, 1] of "no mask given"."""
        weight: Tensor = self.prompt_encoder.no_mask_embed.weight
        return weight.view(1, -1, 1, 1)

    def _is_unused(self, name: str) -> bool:
        if name.startswith("prompt_encoder."):
            return is_unused_embedding(name.removeprefix("prompt_encoder."), self.prompted)
        hyper_networks = "mask_decoder.output_hypernetworks_mlps."
        if name.startswith(hyper_networks):
            return not name.startswith(f"{hyper_networks}0.")
        own_tokens = "mask_decoder.mask_tokens." if self.class_tokens is not None else ()
        return name.startswith("mask_decoder.iou_prediction_head.") or name.startswith(own_tokens)

    def _list_sites(self) -> Iterator[Site]:
        encoder, prefix = self.vision_encoder, "vision_encoder"
        projection = f"{prefix}.patch_embed.projection"
        yield Site(
            name=projection,
            kind=SiteKind.CONV,
            module=self.get_submodule(projection),
            part=Part.ENCODER,
        )
        channels = encoder.pos_embed.shape[-1]
        for index, layer in enumerate(encoder.layers):
            for name, kind in _BLOCK_KINDS.items():
                yield Site(
                    name=f"{prefix}.layers.{index}.{name}".rstrip("."),
                    kind=kind,
                    module=layer.get_submodule(name),
                    part=Part.ENCODER,
                    block=index,
                    windowed=index not in self._global_blocks,
                    channel_axis=-1,
                    channels=channels if kind in (SiteKind.BLOCK, SiteKind.TOKENS) else None,
                    splits=thirds(layer.get_submodule(name)) if kind is SiteKind.ATTENTION_QKV else (),
                    port=kind is SiteKind.TOKENS,
                )
        for name, kind in _NECK_KINDS.items():
            yield Site(
                name=f"{prefix}.neck.{name}",
                kind=kind,
                module=encoder.neck.get_submodule(name),
                part=Part.NECK,
            )
        yield from head_sites(self)
