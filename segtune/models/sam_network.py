"""SAM's parts: sizes, the network as transformers builds it, and an image encoder for any grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segtune.errors import MissingExtraError, UsageError
from segtune.models.sam_attention import WindowAttention
from segtune.models.sections import Section, run_sections

_STANDARD_DEVIATION = 0.02
"""Of random positions."""


@dataclass(frozen=True, kw_only=True)
class SamSizes:
    """Everything that tells one SAM from another.

    Args:
        width: channels of the image encoder.
        depth: its blocks.
        heads: its attention heads.
        global_blocks: indices of the blocks that attend to the whole image; the others attend within
            windows.
        window: side of a window, in patches.
        patch_size: side of a patch, in pixels.
        image_size: side of the images of pretraining, in pixels; other sizes work too.
        decoder_width: channels of the neck's output, the prompts and the mask decoder.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    patch_size: int = 16
    image_size: int = 1024
    decoder_width: int = 256

    def check(self) -> None:
        """Raises UsageError where no network can have these sizes."""
        if self.width % self.heads:
            raise UsageError(
                f"model.width={self.width} cannot be split into model.heads={self.heads} attention heads",
                hint=f"a multiple, for example model.width={_up(self.width, self.heads)}",
            )
        if self.image_size % self.patch_size:
            raise UsageError(
                f"model.image_size={self.image_size} is no multiple of model.patch_size={self.patch_size}",
                hint=f"a multiple, for example model.image_size={_up(self.image_size, self.patch_size)}",
            )
        outside = [index for index in self.global_blocks if not 0 <= index < self.depth]
        if outside:
            raise UsageError(
                f"model.global_blocks names block {outside[0]}, and there are {self.depth} (model.depth)",
                hint=f"blocks are counted from 0 to {self.depth - 1}",
            )


def _up(value: int, step: int) -> int:
    """The next multiple of step."""
    return value + -value % step


def build_network(sizes: SamSizes, variant: str) -> Any:
    """SAM as the library builds it, with random weights that can be trained.

    Returns:
        transformers' SamModel; its two tables of random frequencies are separate buffers.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import SamConfig, SamModel
        from transformers.models.sam.configuration_sam import (
            SamMaskDecoderConfig,
            SamPromptEncoderConfig,
            SamVisionConfig,
        )
    except ModuleNotFoundError as error:
        raise MissingExtraError("transformers", extra="hf", purpose=f"the model {variant!r}") from error
    image = {"image_size": sizes.image_size, "patch_size": sizes.patch_size}
    config = SamConfig(
        vision_config=SamVisionConfig(
            **image,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            global_attn_indexes=sizes.global_blocks,
            window_size=sizes.window,
            output_channels=sizes.decoder_width,
            num_pos_feats=sizes.decoder_width // 2,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(**image, hidden_size=sizes.decoder_width),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=sizes.decoder_width,
            mlp_dim=8 * sizes.decoder_width,
            iou_head_hidden_dim=sizes.decoder_width,
        ),
    )
    config._attn_implementation = "sdpa"
    network = SamModel(config)
    with torch.no_grad():
        # As in the original code. The library's own start, of standard deviation 1e-10 in the image
        # encoder, is meant to be overwritten and cannot be trained.
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        nn.init.normal_(network.vision_encoder.pos_embed, std=_STANDARD_DEVIATION)
        for layer in network.vision_encoder.layers:
            nn.init.normal_(layer.attn.rel_pos_h, std=_STANDARD_DEVIATION)
            nn.init.normal_(layer.attn.rel_pos_w, std=_STANDARD_DEVIATION)
    frequencies = torch.randn(2, sizes.decoder_width // 2)
    for module in (network.shared_image_embedding, network.prompt_encoder.shared_embedding):
        # Random numbers that are never trained: a buffer in the original code, a shared parameter in the
        # library's. Two copies, since a file of safetensors cannot hold shared tensors.
        del module.positional_embedding
        module.register_buffer("positional_embedding", frequencies.clone())
    return network


class PatchEmbedding(nn.Module):
    """Images [B, 3, H, W] to patches [B, h, w, C].

    Args:
        projection: a convolution with the patch as its kernel and stride.
    """

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, images: Tensor) -> Tensor:
        """The convolution, channels last."""
        patches: Tensor = self.projection(images)
        return patches.permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """SAM's image encoder for every grid of patches, square or not.

    The library's encoder takes images of one size. Here absolute and relative positions are interpolated
    to the grid, and attention has a place where tokens may join.

    Args:
        encoder: transformers' SamVisionEncoder, whose layers are taken over.
        checkpointing: keep only the inputs of blocks for the backward pass, and compute them anew.
    """

    def __init__(self, encoder: Any, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.patch_embed = PatchEmbedding(encoder.patch_embed.projection)
        self.pos_embed: nn.Parameter = encoder.pos_embed  # [1, h0, w0, C]
        self.layers: nn.ModuleList = encoder.layers
        for layer in encoder.layers:
            layer.attn = WindowAttention(layer.attn, layer.layer_norm1)
        self.neck: nn.Module = encoder.neck

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to embeddings [B, D, h, w]."""
        embeddings: Tensor = run_sections(self.sections(), images)
        return embeddings

    def sections(self) -> Iterator[Section]:
        """Patches with their positions, each block, and the neck."""
        yield Section("patch_embed", self._embed)
        for index, layer in enumerate(self.layers):
            yield Section(f"layers.{index}", partial(self._run_block, layer))
        yield Section("neck", self.neck)

    def _embed(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.patch_embed(images)  # [B, h, w, C]
        return tokens + self.positions((tokens.shape[1], tokens.shape[2]))

    def _run_block(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            kept: Tensor = checkpoint(layer, tokens, use_reentrant=False)
            return kept
        mixed: Tensor = layer(tokens)
        return mixed

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Absolute positions [1, *grid, C], interpolated where the grid is not that of pretraining."""
        if self.pos_embed.shape[1:3] == grid:
            return self.pos_embed
        table = self.pos_embed.permute(0, 3, 1, 2)  # [1, C, h0, w0]
        return F.interpolate(table, grid, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)


def image_positions(embedding: Any, grid: tuple[int, int]) -> Tensor:
    """The positional encoding that the mask decoder adds to the embeddings of an image.

    Args:
        embedding: transformers' SamPositionalEmbedding, which holds the random frequencies.
        grid: h and w, in patches.

    Returns:
        [1, D, h, w].
    """
    frequencies: Tensor = embedding.positional_embedding
    device = frequencies.device
    # Under autocast the frequencies would be multiplied in 8 bits, which moves patches.
    with torch.autocast(device.type if device.type != "meta" else "cpu", enabled=False):
        rows, columns = (
            (torch.arange(count, device=device, dtype=frequencies.dtype) + 0.5) / count for count in grid
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        encoded: Tensor = embedding(torch.stack([x, y], dim=-1))  # [h, w, D]
    return encoded.permute(2, 0, 1)[None]
