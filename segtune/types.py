"""The words that every package shares: shapes, batches, sites, model output.

Letters used in shape comments everywhere:

    B batch   C input channels   H, W height and width in pixels   K classes   r rank
    I, O input and output channels of a layer   h, w height and width of a feature map

Images are float32 [B, C, H, W] in [0, 1] (RGB where C = 3); normalisation is the model's job.
Masks are int64 class maps [B, H, W] with values 0..K-1 and one ignore value. Binary is K = 2.
Logits are [B, K, H, W], before softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

IGNORE_INDEX = 255
"""Mask value of pixels that count neither for the loss nor for the scores."""

Scores = Mapping[str, float]
"""Numbers from metrics, by name; fractions in [0, 1] unless the name says otherwise."""


class SiteKind(StrEnum):
    """What a site is, in terms that hold for every network.

    `tokens` is a place where tokens may join the sequence that attention sees: a block that takes [B, N, C]
    and gives [B, N, C], alone or as the first value of a tuple, for every N (its site is named after it, with
    ".tokens"); or a port (`Site.port`).
    """

    ATTENTION_QKV = "attention_qkv"
    ATTENTION_PROJ = "attention_proj"
    MLP = "mlp"
    LINEAR = "linear"
    CONV = "conv"
    CONV_TRANSPOSE = "conv_transpose"
    NORM = "norm"
    BLOCK = "block"
    STAGE = "stage"
    TOKENS = "tokens"
    HEAD = "head"


class Part(StrEnum):
    """The part of a network that a site belongs to."""

    ENCODER = "encoder"
    NECK = "neck"
    DECODER = "decoder"
    HEAD = "head"


class Access(StrEnum):
    """How the network uses a layer.

    A layer that is called can be changed around its call; one whose `weight` is read by other code
    (attention out-projections, relative attention in Swin) only through the weight itself.
    """

    CALL = "call"
    WEIGHT = "weight"


@dataclass(frozen=True, eq=False, kw_only=True)
class Site:
    """A named place of a model where a method may attach something."""

    name: str
    """Module path from the model's root, e.g. "encoder.blocks.3.attn.qkv"."""
    kind: SiteKind
    module: nn.Module
    part: Part
    block: int | None = None
    """Index of the block the site lies in, counted from the input; None outside of blocks."""
    windowed: bool | None = None
    """Whether the block attends within windows only; None outside of attention blocks."""
    channel_axis: int = 1
    """Axis of the output's channels: 1 for [B, C, H, W], -1 for channel-last tensors."""
    channels: int | None = None
    """Number of the output's channels; None where the model does not say."""
    access: Access = Access.CALL
    splits: tuple[tuple[str, int, int], ...] = ()
    """Named ranges (name, first, end) of the output channels of a fused layer, e.g. q, k and v; a layer
    that is not fused may name its one range."""
    prefix: int | None = 0
    """Tokens that stand in front of those of the image's grid in what the layer takes: class and register
    tokens, queries. None where all of it lies on no grid, as queries do that stand alone."""
    port: bool = False
    """Of a site of kind `tokens`: the module is asked for tokens with [1, 0, C] and gives [1, n, C]; its
    model drops what comes out for them."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a model takes in."""

    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Per channel, in units of the [0, 1] image."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    multiple: int = 1
    """Height and width are padded to a multiple of this, in pixels, inside the model."""
    minimum: int = 1
    """Smallest height and width, in pixels, that the model accepts (smaller images are padded)."""


@dataclass(kw_only=True)
class Prompts:
    """Objects that were pointed at in a batch of images: by a box, by points, or by both.

    N is the largest number of objects of an image; images with fewer are filled up with objects of
    class -1, which have no part in the output.
    """

    classes: Tensor
    """int64 [B, N], the class of each object, 1..K-1; -1 where there is none."""
    boxes: Tensor | None = None
    """float32 [B, N, 4]: left, top, right, bottom in pixels of the image as it enters the model."""
    points: Tensor | None = None
    """float32 [B, N, P, 2]: x, y in pixels of the image as it enters the model."""
    labels: Tensor | None = None
    """int64 [B, N, P]: 1 for a point on the object, 0 for one beside it, -1 for none."""


@dataclass(kw_only=True)
class Proposals:
    """Masks that a model proposes, each with its class, before they are combined into logits."""

    class_logits: Tensor
    """[B, N, K + 1], the last for "no object"."""
    mask_logits: Tensor
    """[B, N, h, w], before the sigmoid; in an output they cover the image without its padding."""


@dataclass(kw_only=True)
class SegOutput:
    """What a model's forward returns."""

    logits: Tensor
    """[B, K, H, W] at the size asked for."""
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    """Logits of auxiliary classifiers, by name, same shape; empty in eval mode."""
    penalties: dict[str, Tensor] = field(default_factory=dict)
    """Scalar losses that layers of a method report (e.g. load balance); empty in eval mode."""
    proposals: Proposals | None = None
    """What the logits were combined from, of models that propose masks; None in eval mode."""


@dataclass(kw_only=True)
class Batch:
    """Images with their masks, as the data loader yields them."""

    images: Tensor
    """float32 [B, C, H, W] in [0, 1]."""
    masks: Tensor
    """int64 [B, H, W]."""
    names: list[str]
    """One name for each image, as the data calls it."""
    prompts: Prompts | None = None
    """For models that are prompted."""
