"""What every part of a scene is drawn with: random draws, noise textures, the camera and the canvas.

Scenes must be the same on every machine. Therefore drawing uses only operations that IEEE 754
rounds exactly (+ - * / sqrt, comparisons, floor) and no exp, sin, pow, BLAS or sums of arrays,
whose last bits depend on the processor and the maths library; every random number comes from
`Generator.random`, a plain scaling of the raw PCG64 bits.

Letters: u, v are the slopes of a pixel's ray (right and down for each metre ahead), z is the
distance ahead in metres, x the position across the street (0 = middle of the road), h the height
above the ground.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]
Colour = tuple[float, float, float]
"""Red, green, blue in [0, 1]."""
Choice = TypeVar("Choice")

SKY, BUILDING, ROAD, PAVEMENT, VEGETATION, CAR, PERSON, POLE = range(8)

FAR = 400.0
"""Distance in metres beyond which nothing is drawn; the sky lies there."""
TILE = 256
"""Height and width of a noise texture; a power of two, so that positions wrap by a bit mask."""


class Draws:
    """Random choices of one scene.

    Args:
        key: non-negative integers; the same key gives the same choices.
    """

    def __init__(self, *key: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high], both included."""
        return low + int(float(self._generator.random()) * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return float(self._generator.random()) < probability

    def pick(self, choices: Sequence[Choice]) -> Choice:
        """One of the choices."""
        return choices[self.integer(0, len(choices) - 1)]

    def colour(self, choices: Sequence[Colour], spread: float = 0.06) -> Colour:
        """One of the colours, its brightness and its channels varied by `spread`."""
        red, green, blue = self.pick(choices)
        shift = self.between(-spread, spread)
        half = spread / 2
        return (
            min(max(red + shift + self.between(-half, half), 0.02), 1.0),
            min(max(green + shift + self.between(-half, half), 0.02), 1.0),
            min(max(blue + shift + self.between(-half, half), 0.02), 1.0),
        )

    def array(self, *shape: int) -> Field:
        """float32 numbers in [0, 1)."""
        return self._generator.random(shape, dtype=np.float32)


@functools.cache
def noise_tile(kind: str) -> Field:
    """A texture that repeats without a seam, the same in every process.

    Args:
        kind: "cloud" (soft, large), "leaf" (medium to fine) or "grain" (fine).

    Returns:
        float32 [TILE * TILE], in [0, 1], flat so that `texture` can look it up fast.
    """
    # Cells across the tile and the weight of each octave.
    octaves = {
        "cloud": ((4, 1.0), (8, 0.55), (16, 0.3), (32, 0.16), (64, 0.1)),
        "leaf": ((16, 0.5), (32, 0.7), (64, 0.8), (128, 0.8), (256, 0.5)),
        "grain": ((32, 0.3), (128, 0.5), (256, 1.0)),
    }[kind]
    draws = Draws(sum(kind.encode()), TILE)
    total = np.zeros((TILE, TILE), np.float32)
    for cells, weight in octaves:
        octave = draws.array(cells, cells)
        for axis in (0, 1):
            position = np.arange(TILE) * cells / TILE
            low = position.astype(np.int64)
            share = (position - low).astype(np.float32)
            share = share * share * (3 - 2 * share)
            share = share[:, None] if axis == 0 else share[None, :]
            before = octave.take(low, axis=axis)
            octave = before + (octave.take((low + 1) % cells, axis=axis) - before) * share
        total += octave * weight
    tile: Field = (total - total.min()) / (total.max() - total.min())
    return tile.ravel()


def texture(kind: str, down: Field, across: Field) -> Field:
    """Noise at positions counted in texels; the two arrays broadcast.

    Returns:
        float32 in [0, 1], of the broadcast shape.
    """
    rows = np.floor(down).astype(np.int32) & (TILE - 1)
    cols = np.floor(across).astype(np.int32) & (TILE - 1)
    noise: Field = noise_tile(kind).take(rows * TILE + cols)
    return noise


def fraction(values: Field) -> Field:
    """The part after the decimal point, in [0, 1), for negative numbers too."""
    return values - np.floor(values)


def ramp(values: Field, start: float | Field, end: float | Field) -> Field:
    """0 up to `start`, 1 from `end` on, straight in between (start > end falls instead)."""
    return np.clip((values - start) / (end - start), 0, 1)


def rounded(end: Field, reach: float) -> Field:
    """0 at an end, rising like a crown's outline to 1 at the distance `reach` from it."""
    share = ramp(end, 0, reach)
    return share * (2 - share)


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera on a street that bends: its middle is at x = bend * z * z."""

    height_px: int
    width_px: int
    focal: float
    """Pixels."""
    horizon: float
    """Row of the horizon in the middle column, pixels."""
    vanishing: float
    """Column of the vanishing point, pixels."""
    roll: float
    """Rows that the horizon sinks for each column."""
    height: float
    """Metres above the ground."""
    position: float
    """Metres right of the middle of the road."""
    bend: float
    """1 / metres."""

    @functools.cached_property
    def u(self) -> Field:
        """Slope to the right, [W]."""
        return ((np.arange(self.width_px) + 0.5 - self.vanishing) / self.focal).astype(np.float32)

    @functools.cached_property
    def v(self) -> Field:
        """Slope downwards, [H, W]."""
        rows = np.arange(self.height_px) + 0.5 - self.horizon
        cols = (np.arange(self.width_px) + 0.5 - self.width_px / 2) * self.roll
        return ((rows[:, None] - cols[None, :]) / self.focal).astype(np.float32)

    def slope(self, x: float, z: float) -> float:
        """Slope to the right of a point of the street."""
        return (x - self.position) / z + self.bend * z

    def region(self, left: float, right: float, top: float, z: float) -> Region | None:
        """The pixels of an upright rectangle that stands on the ground at distance z.

        Args:
            left: smallest u.
            right: largest u.
            top: its height in metres.
            z: distance in metres.
        """
        tilt = abs(self.roll) * self.width_px / 2
        first_row = int(max(self.horizon + self.focal * (self.height - top) / z - tilt - 1, 0))
        last_row = int(min(self.horizon + self.focal * self.height / z + tilt + 2, self.height_px))
        first_col = int(max(self.vanishing + self.focal * left - 1, 0))
        last_col = int(min(self.vanishing + self.focal * right + 2, self.width_px))
        if last_row <= first_row or last_col <= first_col:
            return None
        return Region(slice(first_row, last_row), slice(first_col, last_col))


@dataclass(frozen=True)
class Region:
    """A rectangle of pixels."""

    rows: slice
    cols: slice


class Canvas:
    """The scene while it is drawn, far things first.

    Attributes:
        camera: where the pixels look.
        reflectance: float32 [3, H, W], how much light each pixel gives back, in [0, 1].
        glow: float32 [3, H, W], light that a pixel sends out by itself.
        depth: float32 [H, W], metres; FAR where nothing was drawn.
        mask: uint8 [H, W], class of each pixel; SKY where nothing was drawn.
        halos: lamps, whose light scatters around them: row, column, radius in pixels, depth, colour.
    """

    def __init__(self, camera: Camera) -> None:
        shape = (camera.height_px, camera.width_px)
        self.camera = camera
        self.reflectance = np.zeros((3, *shape), np.float32)
        self.glow = np.zeros((3, *shape), np.float32)
        self.depth = np.full(shape, FAR, np.float32)
        self.mask = np.full(shape, SKY, np.uint8)
        self.halos: list[tuple[float, float, float, float, Colour]] = []

    def slopes(self, region: Region) -> tuple[Field, Field]:
        """The rays of a region's pixels: u [1, w] and v [h, w]."""
        return self.camera.u[None, region.cols], self.camera.v[region.rows, region.cols]

    def paint(
        self,
        region: Region,
        where: Flags,
        colour: Any,
        *,
        label: int | NDArray[np.uint8],
        depth: float | Field,
    ) -> None:
        """Cover the pixels of a region that are set in `where`.

        Args:
            region: the rectangle, h by w pixels.
            where: [h, w].
            colour: three numbers, each one number or [h, w], or an array that broadcasts to [3, h, w].
            label: class, one number or [h, w].
            depth: metres, one number or an array that broadcasts to [h, w].
        """
        index = (region.rows, region.cols)
        np.copyto(self.mask[index], np.asarray(label, np.uint8), where=where)
        np.copyto(self.depth[index], np.asarray(depth, np.float32), where=where)
        self.tint(region, where, colour)
        np.copyto(self.glow[:, *index], np.float32(0), where=where)

    def tint(self, region: Region, where: Flags, colour: Any) -> None:
        """Change only the colour, for details of something that was painted before."""
        target = self.reflectance[:, region.rows, region.cols]
        for plane, value in zip(target, colour, strict=True):
            np.copyto(plane, np.asarray(value, np.float32), where=where)

    def light(self, region: Region, where: Flags, colour: Colour) -> None:
        """Let the pixels send out light."""
        target = self.glow[:, region.rows, region.cols]
        for plane, value in zip(target, colour, strict=True):
            np.copyto(plane, np.float32(value), where=where)

    def upright(self, x: float, z: float, half_width: float, top: float) -> Upright | None:
        """The pixels of an upright rectangle that stands on the street and faces the camera (metres)."""
        middle = self.camera.slope(x, z)
        region = self.camera.region(middle - half_width / z, middle + half_width / z, top, z)
        if region is None:
            return None
        u, v = self.slopes(region)
        return Upright(self, region, z, across=(u - middle) * z, h=self.camera.height - v * z)

    def halo(self, place: tuple[float, float, float], radius: float, colour: Colour) -> None:
        """Remember a lamp at (x, h, z) of the street; `radius` in metres."""
        x, h, z = place
        camera = self.camera
        col = camera.vanishing + camera.focal * camera.slope(x, z)
        row = camera.horizon + camera.focal * (camera.height - h) / z
        row += camera.roll * (col - camera.width_px / 2)
        self.halos.append((row, col, max(camera.focal * radius / z, 1.0), z, colour))

    def shadow(self, x: float, z: float, half_width: float, half_length: float, strength: float) -> None:
        """Darken an ellipse of the ground around a point of the street (metres)."""
        near = max(z - half_length, 0.5)
        spread = 1.2 * half_width / near
        middle = self.camera.slope(x, z)
        swing = abs(self.camera.slope(x, near) - middle)
        region = self.camera.region(middle - spread - swing, middle + spread + swing, 0.5, near)
        if region is None:
            return
        u, v = self.slopes(region)
        ahead = self.camera.height / np.maximum(v, np.float32(self.camera.height / FAR))
        across = (u - self.camera.bend * ahead) * ahead + self.camera.position
        square = ((across - x) / half_width) ** 2 + ((ahead - z) / half_length) ** 2
        shade = 1 - strength * ramp(square, 1.1, 0.5)
        label = self.mask[region.rows, region.cols]
        np.copyto(shade, np.float32(1), where=(label != ROAD) & (label != PAVEMENT))
        self.reflectance[:, region.rows, region.cols] *= shade


@dataclass(frozen=True)
class Upright:
    """The pixels of an upright rectangle at distance z, with their places on it in metres."""

    canvas: Canvas
    region: Region
    z: float
    across: Field
    """Right of the rectangle's middle, [1, w]."""
    h: Field
    """Above the ground, [h, w]."""

    def paint(self, where: Flags, colour: Any, label: int) -> None:
        """Cover pixels; see `Canvas.paint`."""
        self.canvas.paint(self.region, where, colour, label=label, depth=self.z)

    def tint(self, where: Flags, colour: Any) -> None:
        """Change only the colour of pixels."""
        self.canvas.tint(self.region, where, colour)

    def light(self, where: Flags, colour: Colour) -> None:
        """Let pixels send out light."""
        self.canvas.light(self.region, where, colour)
