"""SAM 2's parts: sizes, the network as transformers builds it, and an image encoder for any grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segtune.errors import MissingExtraError, UsageError
from segtune.models.sections import Section, run_sections

PATCH = 4
"""Stride of a patch in pixels."""
IMAGE_SIZE = 1024
"""Side of the images of pretraining in pixels; coordinates of prompts are given to the library in it."""


@dataclass(frozen=True, kw_only=True)
class Sam2Sizes:
    """Everything that tells one SAM 2 from another.

    Args:
        width: channels of the first of four stages; each further one has twice as many.
        blocks: blocks of each stage.
        heads: attention heads of each stage.
        windows: side of an attention window in each stage, in that stage's positions.
        global_blocks: indices of the blocks that attend to the whole image; the others attend within
            windows.
        background: side of the table of positions that is interpolated to the image.
        decoder_width: channels of the neck's output, the prompts and the mask decoder.
    """

    width: int = 96
    blocks: tuple[int, ...] = (1, 2, 7, 2)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    background: int = 7
    decoder_width: int = 256

    @property
    def widths(self) -> list[int]:
        """Channels of each stage."""
        return [self.width * 2**stage for stage in range(len(self.blocks))]

    @property
    def multiple(self) -> int:
        """What height and width of an image must be a multiple of, in pixels.

        Three times the map is halved, and its positions repeat with the first stage's windows.
        """
        return PATCH * math.lcm(8, self.windows[0])

    def check(self) -> None:
        """Raises UsageError where no network can have these sizes."""
        for name, values in (("blocks", self.blocks), ("heads", self.heads), ("windows", self.windows)):
            if len(values) != 4 or min(values) < 1:
                raise UsageError(
                    f"model.{name}={','.join(map(str, values))}: SAM 2 has four stages",
                    hint=f"four numbers from 1 on, for example model.{name}=1,2,4,8",
                )
        for stage, (width, heads) in enumerate(zip(self.widths, self.heads, strict=True)):
            if width % heads:
                raise UsageError(
                    f"the {width} channels of stage {stage} cannot be split into {heads} attention heads",
                    hint="choose model.width so that every stage has a multiple of its model.heads",
                )
        odd = [side for side in self.windows[:3] if side % 2]
        if odd:
            raise UsageError(
                f"model.windows: a window of {odd[0]} positions cannot be halved between stages",
                hint="even numbers for the first three stages",
            )
        outside = [index for index in self.global_blocks if not 0 <= index < sum(self.blocks)]
        if outside:
            raise UsageError(
                f"model.global_blocks names block {outside[0]}, and model.blocks gives {sum(self.blocks)}",
                hint=f"blocks are counted from 0 to {sum(self.blocks) - 1}",
            )


def build_network(sizes: Sam2Sizes, variant: str) -> Any:
    """SAM 2 as the library builds it, with random weights.

    Returns:
        transformers' Sam2Model; its two tables of random frequencies are equal.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import Sam2Config, Sam2Model
        from transformers.models.sam2.configuration_sam2 import (
            Sam2HieraDetConfig,
            Sam2MaskDecoderConfig,
            Sam2PromptEncoderConfig,
            Sam2VisionConfig,
        )
    except ModuleNotFoundError as error:
        raise MissingExtraError("transformers", extra="hf", purpose=f"the model {variant!r}") from error
    backbone = Sam2HieraDetConfig(
        hidden_size=sizes.width,
        num_attention_heads=sizes.heads[0],
        window_positional_embedding_background_size=[sizes.background, sizes.background],
        blocks_per_stage=list(sizes.blocks),
        embed_dim_per_stage=sizes.widths,
        num_attention_heads_per_stage=list(sizes.heads),
        window_size_per_stage=list(sizes.windows),
        global_attention_blocks=list(sizes.global_blocks),
    )
    config = Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=sizes.widths[::-1],
            fpn_hidden_size=sizes.decoder_width,
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=sizes.decoder_width, image_size=IMAGE_SIZE),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=sizes.decoder_width,
            mlp_dim=8 * sizes.decoder_width,
            iou_head_hidden_dim=sizes.decoder_width,
        ),
    )
    config._attn_implementation = "sdpa"
    network = Sam2Model(config)
    # As in the original code. The library's own start, of standard deviation 0.02, is meant to be
    # overwritten: what reaches the mask through the finest maps is too small to be trained.
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    frequencies = network.shared_image_embedding.positional_embedding
    network.prompt_encoder.shared_embedding.positional_embedding.copy_(frequencies)
    return network


class Trunk(nn.Module):
    """Hiera: images [B, 3, H, W] to the maps of its four stages, channels last.

    Args:
        backbone: transformers' Sam2HieraDetModel, whose layers are taken over.
        checkpointing: keep only the inputs of blocks for the backward pass, and compute them anew.
    """

    def __init__(self, backbone: Any, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.patch_embed: nn.Module = backbone.patch_embed
        self.pos_embed: nn.Parameter = backbone.pos_embed  # [1, C, h0, w0]
        self.pos_embed_window: nn.Parameter = backbone.pos_embed_window  # [1, C, window, window]
        self.blocks: nn.ModuleList = backbone.blocks
        self._ends = frozenset(backbone.stage_ends)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps [B, h, w, C] at 1/4, 1/8, 1/16 and 1/32 of the image's size."""
        maps: list[Tensor] = run_sections(self.sections(), images)[1]
        return maps

    def sections(self) -> Iterator[Section]:
        """Patches with their positions, and each block; the tokens, and the maps so far."""
        yield Section("patch_embed", self._embed)
        for index in range(len(self.blocks)):
            yield Section(f"blocks.{index}", partial(self._run_block, index))

    def _embed(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        tokens: Tensor = self.patch_embed(images)  # [B, h, w, C]
        return tokens + self.positions((tokens.shape[1], tokens.shape[2])), []

    def _run_block(self, index: int, state: tuple[Tensor, list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        tokens, maps = state
        if self.checkpointing and torch.is_grad_enabled():
            tokens = checkpoint(self.blocks[index], tokens, use_reentrant=False)
        else:
            tokens = self.blocks[index](tokens)
        return tokens, [*maps, tokens] if index in self._ends else maps

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions [1, *grid, C]: a table stretched over the image, and one repeated in each window."""
        stretched = F.interpolate(self.pos_embed, grid, mode="bicubic")
        side = self.pos_embed_window.shape[-1]
        repeated = self.pos_embed_window.tile(1, 1, grid[0] // side, grid[1] // side)
        return (stretched + repeated).permute(0, 2, 3, 1)


class Pyramid(nn.Module):
    """The neck: each stage's map to D channels, and the two coarsest of them added up.

    Args:
        neck: transformers' Sam2VisionNeck, whose convolutions are taken over.
    """

    def __init__(self, neck: Any) -> None:
        super().__init__()
        self.convs: nn.ModuleList = neck.convs  # from the coarsest map to the finest
        self._joined = frozenset(neck.fpn_top_down_levels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of four stages to [B, D, h, w] at 1/4, 1/8 and 1/16 of the image's size."""
        levels: list[Tensor] = []
        for level, convolution in zip(range(len(maps) - 1, -1, -1), self.convs, strict=True):
            lateral: Tensor = convolution(maps[level].permute(0, 3, 1, 2))
            if levels and level in self._joined:
                above = F.interpolate(levels[-1].float(), scale_factor=2.0, mode="nearest")
                lateral = lateral + above.to(lateral.dtype)
            levels.append(lateral)
        return levels[:0:-1]


class ImageEncoder(nn.Module):
    """SAM 2's image encoder for every grid of patches, square or not.

    Args:
        encoder: transformers' Sam2VisionModel, whose layers are taken over.
        checkpointing: keep only the inputs of blocks for the backward pass, and compute them anew.
    """

    def __init__(self, encoder: Any, checkpointing: bool) -> None:
        super().__init__()
        self.backbone = Trunk(encoder.backbone, checkpointing)
        self.neck = Pyramid(encoder.neck)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to maps [B, D, h, w] at 1/4, 1/8 and 1/16 of their size."""
        levels: list[Tensor] = self.neck(self.backbone(images))
        return levels

    def sections(self) -> Iterator[Section]:
        """Those of the trunk, and the neck."""
        yield from self.backbone.sections()
        yield Section("neck", lambda state: self.neck(state[1]))
