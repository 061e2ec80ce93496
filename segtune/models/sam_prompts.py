"""SAM's prompts: coordinates for the prompt encoder, and masks of objects as logits of classes.

Every object has a prompt and a class. A pixel's logit for a class is the largest mask logit of the
class's objects; the background's is 0, as in the model for two classes without prompts. So one
object of one class gives softmax = sigmoid of the published mask, and cross entropy and dice reach
the mask of every object that is the most certain one somewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segtune.types import Prompts

ABSENT = -30.0
"""Logit of a class without an object: a probability below 1e-13 beside the background's 0, and a finite
loss where the ground truth holds the class all the same."""

KINDS = {
    "none": frozenset[str](),
    "box": frozenset({"box"}),
    "point": frozenset({"point"}),
    "box+point": frozenset({"box", "point"}),
}
"""Values of `model.prompts`, with what each object is pointed at by."""


def embed_prompts(encoder: Any, kinds: frozenset[str], prompts: Prompts, padded: tuple[int, int]) -> Tensor:
    """The prompt encoder's tokens of each object.

    The image's positions are shares of its padded height and width (`image_positions`). The library's
    encoder divides by the side of the images of pretraining, so coordinates are stretched to that
    first; for images of that size nothing changes.

    Args:
        encoder: transformers' SamPromptEncoder or Sam2PromptEncoder.
        kinds: of `KINDS`.
        prompts: of N objects; coordinates in pixels.
        padded: height and width of the padded images in pixels.

    Returns:
        [B, N, T, D].
    """
    frequencies: Tensor = encoder.shared_embedding.positional_embedding
    side = encoder.input_image_size
    scale = torch.tensor(
        [side / padded[1], side / padded[0]], dtype=frequencies.dtype, device=frequencies.device
    )

    def stretched(coordinates: Tensor) -> Tensor:
        pairs = coordinates.to(frequencies.dtype).reshape(*coordinates.shape[:-1], -1, 2)
        return ((pairs + 0.5) * scale - 0.5).flatten(-2)

    points = labels = boxes = None
    if "point" in kinds:
        assert prompts.points is not None
        points = stretched(prompts.points)  # [B, N, P, 2]
        labels = (
            torch.ones_like(points[..., 0], dtype=torch.long) if prompts.labels is None else prompts.labels
        )
    if "box" in kinds:
        assert prompts.boxes is not None
        boxes = stretched(prompts.boxes)  # [B, N, 4]
    # Under autocast positions would be multiplied in 8 bits, which moves boxes.
    with torch.autocast(scale.device.type if scale.device.type != "meta" else "cpu", enabled=False):
        tokens: Tensor = encoder(points, labels, boxes, None)[0]
    return tokens


def combine_objects(masks: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Masks of objects to logits of classes.

    Args:
        masks: mask logits [B, N, h, w].
        classes: int64 [B, N], 1..K-1; -1 where there is no object.
        num_classes: K.

    Returns:
        [B, K, h, w]: 0 for the background, the largest mask logit of a class's objects for the others,
        at least `ABSENT`.
    """
    batch, _, height, width = masks.shape
    logits = masks.new_full((batch, num_classes, height, width), ABSENT)
    # What is no object goes to the background, which is replaced.
    index = classes.clamp_min(0)[:, :, None, None].expand_as(masks)
    logits = logits.scatter_reduce(1, index, masks, "amax")
    return torch.cat([torch.zeros_like(logits[:, :1]), logits[:, 1:]], dim=1)


def is_unused_embedding(name: str, kinds: frozenset[str]) -> bool:
    """Whether a parameter of the prompt encoder's points and boxes gets no gradient in training.

    The embedding of negative points is one of them: training draws points on objects only.

    Args:
        name: below the prompt encoder, e.g. "point_embed.2.weight".
        kinds: of `KINDS`.
    """
    if name.startswith("no_mask_embed."):
        return False
    used = {
        "box": ("point_embed.2.", "point_embed.3."),
        "point": ("point_embed.1.",),
    }
    # Without a box the library adds an empty point to the others.
    padding = ("not_a_point_embed.",) if kinds == KINDS["point"] else ()
    return not name.startswith((*padding, *(prefix for kind in sorted(kinds) for prefix in used[kind])))
