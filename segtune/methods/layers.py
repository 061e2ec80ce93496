"""What several methods ask of linear and convolution layers: their output channels, and how they run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segtune.methods.attach import Operation, Order, own_weight
from segtune.types import Access, Site

Ranges = Sequence[tuple[int, int]]
"""Ranges (first, end) of output channels, in rising order and apart from each other."""


@dataclass(frozen=True)
class OutputChannels:
    """Where a layer's weight has its output channels."""

    num: int
    """O."""
    transposed: bool
    groups: int

    @classmethod
    def of(cls, layer: nn.Module) -> OutputChannels:
        """Those of a linear, convolution or transposed convolution layer."""
        if isinstance(layer, nn.Linear):
            return cls(layer.out_features, False, 1)
        assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        return cls(layer.out_channels, isinstance(layer, nn.ConvTranspose2d), layer.groups)

    def rows(self, weight: Tensor) -> Tensor:
        """A weight as a matrix [O, everything that one output is computed with]."""
        if not self.transposed:  # [O, I/g, k, k]
            return weight.reshape(self.num, -1)
        inputs, outputs, *kernel = weight.shape  # [I, O/g, k, k]
        grouped = weight.reshape(self.groups, inputs // self.groups, outputs, *kernel)
        return grouped.transpose(1, 2).reshape(self.num, -1)

    def scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        """A weight times one factor [O] for each output channel, in the type of the weight."""
        if not self.transposed:
            return (weight * scale.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
        inputs, outputs, height, width = weight.shape
        grouped = weight.view(self.groups, inputs // self.groups, outputs, height, width)
        return (grouped * scale.view(self.groups, 1, outputs, 1, 1)).to(weight.dtype).view(weight.shape)


def has_plain_forward(layer: nn.Module) -> bool:
    """Whether a layer runs as nn.Linear, nn.Conv2d or nn.ConvTranspose2d do, and not in a way of its own."""
    cls = getattr(type(layer), "adapted_class", type(layer))
    return any(cls.forward is base.forward for base in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))


def runs_as_called(layer: nn.Module, access: Access) -> bool:
    """Whether a change of the layer's output is the same as the change of its weight and bias."""
    return access is Access.CALL and has_plain_forward(layer)


def along(vector: Tensor, axis: int, like: Tensor) -> Tensor:
    """A vector of channels in the type of a tensor and in a shape that broadcasts over it.

    Args:
        vector: [C].
        axis: of the tensor's channels: 1 or -1.
        like: the tensor.
    """
    return vector.to(like.dtype) if axis == -1 else vector.to(like.dtype).view(-1, *[1] * (like.ndim - 2))


def width_of(ranges: Ranges) -> int:
    """Number of channels in the ranges."""
    return sum(end - first for first, end in ranges)


def spread(part: Tensor, ranges: Ranges, num: int, fill: float) -> Tensor:
    """Puts rows into their ranges among `num` rows, the others filled with a constant.

    Args:
        part: [rows in the ranges, ...].
        ranges: where they belong; all of `num` gives the part itself.
        num: number of rows of the result.
        fill: value of the other rows.
    """
    if width_of(ranges) == num:
        return part
    pieces, position, taken = [], 0, 0
    for first, end in ranges:
        pieces.append(part.new_full((first - position, *part.shape[1:]), fill))
        pieces.append(part[taken : taken + end - first])
        position, taken = end, taken + end - first
    pieces.append(part.new_full((num - position, *part.shape[1:]), fill))
    return torch.cat(pieces)


def pick(whole: Tensor, ranges: Ranges) -> Tensor:
    """The rows of the ranges."""
    return torch.cat([whole[first:end] for first, end in ranges])


def named_ranges(site: Site, names: Iterable[str]) -> Ranges:
    """The ranges of a fused layer that have one of these names; empty where there is none."""
    wanted = set(names)
    return tuple((first, end) for name, first, end in site.splits if name in wanted)


class OutputOperation(Operation):
    """A change of every output channel by itself, done to the output or to weight and bias.

    Args:
        form: "output", or "weight" for a layer that does not run as it is called.
    """

    def __init__(self, *, form: str) -> None:
        super().__init__()
        self.changes_weight = form == "weight"

    @property
    def order(self) -> Order:
        """Behind every change of the weight, in either form."""
        return Order.AROUND

    def fold(self, layer: nn.Module) -> None:
        """Writes the change into the layer's weight and bias."""
        weight, bias = own_weight(layer), layer._parameters.get("bias")
        changed = self.bias(bias)
        weight.copy_(self.weight(weight))
        if bias is not None:
            assert changed is not None
            bias.copy_(changed)
        elif changed is not None:
            layer._parameters["bias"] = nn.Parameter(changed.to(weight.dtype))


def first_of(output: Tensor | tuple[Any, ...]) -> Tensor:
    """What a block puts out, where it gives a tensor or a tuple with the tensor in front."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def with_first(output: Any, tensor: Tensor) -> Any:
    """A block's output with another tensor in the place of the first."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
