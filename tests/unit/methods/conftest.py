"""Layers in every form that a segmentation network has."""

from __future__ import annotations

import pytest
import torch
from torch import nn


class PaddedConv(nn.Conv2d):
    """A subclass with a forward of its own, as in EfficientNet implementations."""

    def forward(self, x):
        return nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


LAYERS = {
    "linear": lambda: nn.Linear(6, 10),
    "linear-no-bias": lambda: nn.Linear(6, 10, bias=False),
    "conv": lambda: nn.Conv2d(6, 10, 3, padding=1),
    "conv-no-bias-stride": lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False),
    "conv-dilation-reflect": lambda: nn.Conv2d(6, 10, 3, padding=2, dilation=2, padding_mode="reflect"),
    "conv-groups": lambda: nn.Conv2d(6, 10, 3, padding="same", groups=2),
    "conv-depthwise": lambda: nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False),
    "conv-subclass": lambda: PaddedConv(6, 10, 2),
    "transposed": lambda: nn.ConvTranspose2d(6, 10, 2, stride=2),
    "transposed-groups": lambda: nn.ConvTranspose2d(6, 10, 3, stride=2, padding=1, groups=2, bias=False),
}
NORMS = {
    "batch-norm": (lambda: nn.BatchNorm2d(6), 1),
    "group-norm": (lambda: nn.GroupNorm(2, 6), 1),
    "instance-norm": (lambda: nn.InstanceNorm2d(6, affine=True), 1),
    "layer-norm": (lambda: nn.LayerNorm(11), -1),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    """A linear or convolution layer with random weights, in double precision."""
    torch.manual_seed(0)
    return LAYERS[request.param]().double()


@pytest.fixture
def x(request):
    """An input of `layer`, or of a norm."""
    torch.manual_seed(1)
    linear = "layer" in request.fixturenames and isinstance(request.getfixturevalue("layer"), nn.Linear)
    return torch.randn(3, 5, 6).double() if linear else torch.randn(2, 6, 9, 11).double()


@pytest.fixture
def weight_by_output():
    """A function: layer to (output channel, index into the weight) pairs, one channel at a time."""

    def pairs(layer: nn.Module):
        weight = layer._parameters["weight"]
        if not isinstance(layer, nn.ConvTranspose2d):
            return [(o, (o,)) for o in range(weight.shape[0])]
        inputs, per_group = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        return [
            (group * per_group + o, (slice(group * inputs, (group + 1) * inputs), o))
            for group in range(layer.groups)
            for o in range(per_group)
        ]

    return pairs
