"""Names of SAM's tensors: those of the original code's checkpoints, and those of transformers."""

from __future__ import annotations

import re

from torch import Tensor

_HYPER = r"\b(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers"

_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^image_encoder\.", "vision_encoder."),
        (r"\bblocks\.", "layers."),
        (r"\bpatch_embed\.proj\.", "patch_embed.projection."),
        (r"\bneck\.0\.", "neck.conv1."),
        (r"\bneck\.1\.", "neck.layer_norm1."),
        (r"\bneck\.2\.", "neck.conv2."),
        (r"\bneck\.3\.", "neck.layer_norm2."),
        (r"\bnorm(\d|_final_attn)\.", r"layer_norm\1."),
        (r"\boutput_upscaling\.0\.", "upscale_conv1."),
        (r"\boutput_upscaling\.1\.", "upscale_layer_norm."),
        (r"\boutput_upscaling\.3\.", "upscale_conv2."),
        # In this order: the second layer takes the number that the first one had.
        (rf"{_HYPER}\.0\.", r"\1.proj_in."),
        (rf"{_HYPER}\.1\.", r"\1.layers.0."),
        (rf"{_HYPER}\.2\.", r"\1.proj_out."),
        (r"\bmask_downscaling\.0\.", "mask_embed.conv1."),
        (r"\bmask_downscaling\.1\.", "mask_embed.layer_norm1."),
        (r"\bmask_downscaling\.3\.", "mask_embed.conv2."),
        (r"\bmask_downscaling\.4\.", "mask_embed.layer_norm2."),
        (r"\bmask_downscaling\.6\.", "mask_embed.conv3."),
        (r"\bpoint_embeddings\.", "point_embed."),
        (r"\bpe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
    )
)

_TABLES = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
"""One table of frequencies under two names; a file may hold either or both."""


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names of transformers' SamModel, whichever layout it has."""
    if any(key.startswith("image_encoder.") for key in state):
        state = {_rename(key): value for key, value in state.items()}
    return both_tables(state)


def both_tables(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with the table of frequencies under both of its names."""
    for name, other in (_TABLES, _TABLES[::-1]):
        if name in state and other not in state:
            state = {**state, other: state[name]}
    return state


def _rename(key: str) -> str:
    for pattern, name in _RENAMED:
        key = pattern.sub(name, key)
    return key
