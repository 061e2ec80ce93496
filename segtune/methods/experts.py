"""Convolutions at a finer scale: enlarge a map, convolve it, shrink it again, mostly without the large map.

Shrinking without antialiasing reads only a few pixels of the large map for each pixel of the small one:
for an odd scale s one of s x s, for an even one 2 x 2 (bilinear) or 4 x 4 (bicubic). Such a pixel, its
*phase*, is a convolution of interpolated values, hence a fixed linear function of a small neighbourhood
in the small map, so that

    expert(x) = sum over phases p of weight_p * GELU(conv(replicate_pad(x), K_p) + bias)

with kernels K_p that are linear in the expert's own. Enlarging clamps coordinates at the border, which
replicate padding does too. The convolution's zero padding around the large map is read only where the
phases reach its edge (s = 2; s = 4 with bicubic): there the large map is made; for s = 4, unless maps are
small, only that of the strips which the outermost ring of pixels depends on. Bicubic resizings are then
products with constant matrices, one for each axis, half to three quarters of the time of PyTorch's own.
Resizing by convolutions with constant kernels is exact as well and no gain: 0.8 to 1.4 times PyTorch's time.

`expert_plain` is the definition, `Expert` computes the same by the cheapest exact way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segtune.methods.few_channels import convolve

Interpolation = Literal["bicubic", "bilinear"]
Route = Literal["phases", "ring", "large"]

RING_SIDE = 48
"""Pixels of a map's shorter side from which the strips cost less than the large map."""


def expert_plain(
    x: Tensor, weight: Tensor, bias: Tensor, scale: int, interpolation: Interpolation, *, gelu: bool
) -> Tensor:
    """The definition: enlarge by `scale`, convolve with zero padding, GELU, shrink to the size before.

    Args:
        x: [B, r, h, w].
        weight: [r, r, k, k], k odd.
        bias: [r].
        scale: at least 1; 1 means no resizing.
        interpolation: of both resizings.
        gelu: whether a GELU follows the convolution.

    Returns:
        [B, r, h, w].
    """
    height, width = x.shape[-2:]
    if scale > 1:
        x = F.interpolate(x, (height * scale, width * scale), mode=interpolation, align_corners=False)
    x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    if gelu:
        x = F.gelu(x)
    if scale > 1:
        x = F.interpolate(x, (height, width), mode=interpolation, align_corners=False)
    return x


# --- one axis ---------------------------------------------------------------------------------


def _taps(position: Fraction, interpolation: Interpolation) -> dict[int, float]:
    """Pixels and weights from which the value at a position (in units of pixels) is interpolated."""
    first = math.floor(position)
    t = float(position - first)
    if interpolation == "bilinear":
        weights = {first: 1 - t, first + 1: t}
    else:
        weights = {first + offset: _cubic(abs(t - offset)) for offset in (-1, 0, 1, 2)}
    return {pixel: weight for pixel, weight in weights.items() if weight != 0}


def _cubic(distance: float, a: float = -0.75) -> float:
    """Weight of a pixel at a distance in [0, 2] (Keys, 1981, with the usual a of image libraries)."""
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance * distance + 1
    return a * (((distance - 5) * distance + 8) * distance - 4)


def _enlarged(offset: int, scale: int, interpolation: Interpolation) -> dict[int, float]:
    """Taps, relative to small pixel i, of pixel `scale * i + offset` of the large map."""
    return _taps(Fraction(2 * offset + 1 - scale, 2 * scale), interpolation)


def _shrunk(scale: int, interpolation: Interpolation) -> dict[int, float]:
    """Phases: offsets from `scale * i`, with weights, of the large pixels that small pixel i is made of."""
    return _taps(Fraction(scale - 1, 2), interpolation)


def _edge(scale: int, interpolation: Interpolation, kernel_size: int) -> int:
    """How many rings of small pixels have phases whose convolution reads over the large map's edge."""
    return -(-max(0, kernel_size // 2 - min(_shrunk(scale, interpolation))) // scale)


def choose_route(scale: int, interpolation: Interpolation, kernel_size: int) -> Route:
    """The cheapest exact way to compute an expert on a map that is not small."""
    if scale < 3:  # neighbours share their phases
        return "large"
    return "ring" if _edge(scale, interpolation, kernel_size) else "phases"


@cache
def _resizing(length: int, scale: int, interpolation: Interpolation) -> tuple[NDArray[Any], NDArray[Any]]:
    """Matrices [s L, L] and [L, s L] that enlarge and shrink one axis; coordinates are clamped."""
    large = length * scale
    enlarging, shrinking = np.zeros((large, length)), np.zeros((length, large))
    for pixel in range(large):
        for tap, weight in _taps(Fraction(2 * pixel + 1 - scale, 2 * scale), interpolation).items():
            enlarging[pixel, min(max(tap, 0), length - 1)] += weight
    for pixel in range(length):
        for tap, weight in _taps(Fraction(scale * (2 * pixel + 1) - 1, 2), interpolation).items():
            shrinking[pixel, min(max(tap, 0), large - 1)] += weight
    return enlarging, shrinking


def _expert_large(
    x: Tensor, weight: Tensor, bias: Tensor, scale: int, interpolation: Interpolation, *, gelu: bool
) -> Tensor:
    """`expert_plain` with both resizings as products of matrices."""
    rows, columns = (
        [torch.from_numpy(matrix).to(x) for matrix in _resizing(length, scale, interpolation)]
        for length in x.shape[-2:]
    )
    x = rows[0] @ (x @ columns[0].T)
    x = convolve(x, weight, bias, padding=weight.shape[-1] // 2, gelu=gelu)
    return rows[1] @ (x @ columns[1].T)


@dataclass(frozen=True)
class _Phases:
    """Constants of an expert whose large map is not needed."""

    kernels: tuple[tuple[float, ...], ...]
    """[k k, P l l]: from the expert's kernel to the P kernels on the small map, flattened."""
    weights: tuple[float, ...]
    """[P]: weight of each phase."""
    size: int
    """l: side of those kernels."""


@cache
def _phases(scale: int, interpolation: Interpolation, kernel_size: int) -> _Phases:
    half = kernel_size // 2
    phases = _shrunk(scale, interpolation)
    rows = [
        [_enlarged(phase + tap, scale, interpolation) for tap in range(-half, half + 1)] for phase in phases
    ]
    reach = max(abs(pixel) for phase in rows for taps in phase for pixel in taps)
    size = 2 * reach + 1
    # [phase, tap, pixel] of one axis
    axis = [[[taps.get(p - reach, 0.0) for p in range(size)] for taps in phase] for phase in rows]
    kernels = tuple(
        tuple(
            axis[p][ky][a] * axis[q][kx][b]
            for p in range(len(axis))
            for q in range(len(axis))
            for a in range(size)
            for b in range(size)
        )
        for ky in range(kernel_size)
        for kx in range(kernel_size)
    )
    weights = tuple(first * second for first in phases.values() for second in phases.values())
    return _Phases(kernels, weights, size)


# --- the expert -------------------------------------------------------------------------------


class Expert(nn.Module):
    """`expert_plain` at one scale by the cheapest exact way; the convolution's tensors are given to it.

    Args:
        scale: at least 1.
        interpolation: of both resizings.
        kernel_size: k of the convolution, odd.
        gelu: whether a GELU follows the convolution.
    """

    def __init__(self, scale: int, interpolation: Interpolation, kernel_size: int, *, gelu: bool) -> None:
        super().__init__()
        self.scale = scale
        self.interpolation: Interpolation = interpolation
        self.kernel_size = kernel_size
        self.gelu = gelu
        self.route = choose_route(scale, interpolation, kernel_size)
        self._fill(torch.zeros(()))

    def _fill(self, like: Tensor) -> None:
        """Makes the constants in the type and on the device of a tensor."""
        self.like = like
        if self.route == "large":
            return
        phases = _phases(self.scale, self.interpolation, self.kernel_size)
        self.size = phases.size
        self.kernels = like.new_tensor(phases.kernels)
        self.weights = like.new_tensor(phases.weights)
        if not self.gelu:  # all phases are one kernel then
            stacked = self.kernels.view(self.kernel_size**2, -1, self.size**2)
            self.kernels = torch.einsum("kpl,p->kl", stacked, self.weights)
            self.weights = like.new_ones(1)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        # constants, not state: they follow the module without being saved with it
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fill(fn(self.like))
        return self

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Maps x [B, r, h, w] to [B, r, h, w].

        Args:
            x: the maps; B may be 0.
            weight: [r, r, k, k].
            bias: [r].
        """
        if self.scale == 1:
            return convolve(x, weight, bias, padding=self.kernel_size // 2, gelu=self.gelu)
        if self.route == "phases":
            return self._inside(x, weight, bias)
        if self.route == "large" or torch.compiler.is_compiling():
            return self._by_large(x, weight, bias)
        edge = _edge(self.scale, self.interpolation, self.kernel_size)
        reach = edge + self.size // 2  # what the outermost pixels depend on
        if min(x.shape[-2:]) < max(RING_SIDE, 2 * reach):
            return self._by_large(x, weight, bias)
        batch, cut = len(x), slice(edge, -edge)
        inside = self._inside(x, weight, bias)[:, :, cut, cut]
        rows = self._by_large(torch.cat([x[:, :, :reach], x[:, :, -reach:]]), weight, bias)
        sides = self._by_large(torch.cat([x[..., :reach], x[..., -reach:]]), weight, bias)[:, :, cut]
        middle = torch.cat([sides[:batch, ..., :edge], inside, sides[batch:, ..., -edge:]], dim=3)
        return torch.cat([rows[:batch, :, :edge], middle, rows[batch:, :, -edge:]], dim=2)

    def _by_large(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # PyTorch's bilinear resizing is as fast, and a compiler fuses it with what is around it
        plain = self.interpolation == "bilinear" or torch.compiler.is_compiling()
        compute = expert_plain if plain else _expert_large
        return compute(x, weight, bias, self.scale, self.interpolation, gelu=self.gelu)

    def _inside(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The sum over phases: right wherever the convolution does not reach over the large map's edge."""
        rank, size, count = weight.shape[0], self.size, len(self.weights)
        kernels = weight.reshape(rank * rank, -1) @ self.kernels  # [r r, P l l]
        kernels = kernels.view(rank, rank, count, size, size).transpose(1, 2).reshape(-1, rank, size, size)
        padded = F.pad(x, (size // 2,) * 4, mode="replicate")
        return convolve(padded, kernels, bias, gelu=self.gelu, weights=self.weights if count > 1 else None)


class Experts(nn.Module):
    """Several experts with their tensors.

    Args:
        rank: r, channels of the maps.
        scales: scale of each expert.
        kernel_sizes: side of each expert's kernel, odd.
        interpolation: of both resizings.
        gelu: whether a GELU follows each convolution.
    """

    def __init__(
        self,
        rank: int,
        scales: Sequence[int],
        kernel_sizes: Sequence[int],
        interpolation: Interpolation,
        *,
        gelu: bool,
    ) -> None:
        super().__init__()
        self.rank = rank
        self.kernel_sizes = tuple(kernel_sizes)
        self.members = nn.ModuleList(
            Expert(scale, interpolation, size, gelu=gelu)
            for scale, size in zip(scales, kernel_sizes, strict=True)
        )
        # One tensor holds the kernels of all experts side by side: an expert that is not used in a step then
        # has a gradient of zeros, which distributed training expects of every parameter.
        self.columns = [rank * size * size for size in kernel_sizes]
        self.kernels = nn.Parameter(torch.empty(rank, sum(self.columns)))  # [r, sum of r k k]
        self.bias = nn.Parameter(torch.zeros(rank * len(self.members)))
        for part in torch.split(self.kernels.detach(), self.columns, dim=1):
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))  # as nn.Conv2d starts

    def __len__(self) -> int:
        return len(self.members)

    def run(self, index: int, x: Tensor) -> Tensor:
        """Output [B, r, h, w] of one expert for maps x [B, r, h, w]."""
        first, size = sum(self.columns[:index]), self.kernel_sizes[index]
        kernel = self.kernels[:, first : first + self.columns[index]].view(self.rank, self.rank, size, size)
        bias = self.bias[index * self.rank : (index + 1) * self.rank]
        y: Tensor = self.members[index](x, kernel, bias)
        return y


def num_expert_parameters(rank: int, kernel_sizes: Sequence[int]) -> int:
    """`k k r r + r` for each expert."""
    return sum(size * size * rank * rank + rank for size in kernel_sizes)
