"""The light of a scene: sky, illumination, fog, lamps and the camera's own blur and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segtune.demo.canvas import SKY, Canvas, Colour, Draws, Field, ramp, texture

Domain = Literal["day", "dusk"]


@dataclass(frozen=True, kw_only=True)
class Light:
    """The light of a scene; colours in [0, 1], distances in metres."""

    sunny: bool
    ambient: Colour
    """Factor on what every surface gives back."""
    zenith: Colour
    horizon: Colour
    cloud: Colour
    cover: float
    """Share of clouds, roughly, 0..1."""
    fog: Colour
    visibility: float
    """Distance at which about 40 % of the light still comes through the fog."""
    headlight: float
    """Brightness of the camera car's own lamps on the ground ahead."""
    lit: float
    """Share of windows with light inside, 0..1."""
    lamps: bool
    blur: float
    """Weight of each neighbour in one pass of the blur."""
    noise: float
    """Amplitude of the sensor noise, in units of the [0, 1] image."""
    contrast: float
    """1 keeps it; smaller pulls every value to a middle grey."""


def plan_light(draws: Draws, domain: Domain) -> Light:
    """Choose the light of a scene."""
    return _plan_day(draws) if domain == "day" else _plan_dusk(draws)


def _plan_day(draws: Draws) -> Light:
    sunny = draws.chance(0.6)
    level = draws.between(0.85, 1.12)
    warmth = draws.between(-0.05, 0.07)
    grey = draws.between(0.72, 0.9)
    blue = (draws.between(0.28, 0.48), draws.between(0.5, 0.64), draws.between(0.78, 0.92))
    return Light(
        sunny=sunny,
        ambient=(level * (1 + warmth), level, level * (1 - warmth)),
        zenith=blue if sunny else (grey * 0.9, grey * 0.94, grey),
        horizon=(0.78, 0.85, 0.92) if sunny else (grey, grey, grey),
        cloud=(0.93, 0.94, 0.95) if sunny else (grey * 1.06, grey * 1.07, grey * 1.08),
        cover=draws.between(0.1, 0.7),
        fog=(0.78, 0.83, 0.88),
        visibility=draws.between(350, 1500),
        headlight=0.0,
        lit=0.0,
        lamps=False,
        blur=draws.between(0.06, 0.17),
        noise=draws.between(0.015, 0.04),
        contrast=draws.between(0.94, 1.05),
    )


def _plan_dusk(draws: Draws) -> Light:
    level = draws.between(0.3, 0.5)
    warm = draws.chance(0.5)
    cast = (1.1, 0.95, 0.85) if warm else (0.8, 0.95, 1.22)
    glow = draws.between(0.5, 0.68)
    horizon = (glow * 1.12, glow * 0.9, glow * 0.76) if warm else (glow * 0.84, glow * 0.93, glow * 1.05)
    zenith = (glow * 0.6, glow * 0.62, glow * 0.78) if warm else (glow * 0.45, glow * 0.56, glow * 0.78)
    thick = draws.between(0.86, 1.0)
    return Light(
        sunny=False,
        ambient=(level * cast[0], level * cast[1], level * cast[2]),
        zenith=zenith,
        horizon=horizon,
        cloud=(horizon[0] * 0.8, horizon[1] * 0.78, horizon[2] * 0.85),
        cover=draws.between(0.2, 0.8),
        fog=(horizon[0] * thick, horizon[1] * thick, horizon[2] * thick),
        visibility=draws.between(28, 95),
        headlight=draws.between(0.1, 0.4),
        lit=draws.between(0.1, 0.7),
        lamps=True,
        blur=draws.between(0.1, 0.2),
        noise=draws.between(0.04, 0.09),
        contrast=draws.between(0.75, 0.95),
    )


def develop(canvas: Canvas, draws: Draws, light: Light) -> NDArray[np.uint8]:
    """Turn the painted scene into the picture that a camera takes of it.

    Returns:
        uint8 [H, W, 3].
    """
    camera = canvas.camera
    picture = canvas.reflectance
    beam = light.headlight * ramp(canvas.depth, 22, 4) * ramp(np.abs(camera.u), 0.6, 0.15)
    beam *= ramp(camera.v, -0.05, 0.08)
    clear = canvas.depth / light.visibility
    clear = 1 / (1 + clear + clear * clear / 2)
    sky = _sky(canvas, draws, light)
    is_sky = canvas.mask == SKY
    for channel, sky_plane in enumerate(sky):
        lit = picture[channel] * (light.ambient[channel] + beam) + canvas.glow[channel]
        fogged = lit * clear + (1 - clear) * light.fog[channel]
        picture[channel] = np.where(is_sky, sky_plane, fogged)
    if light.lamps:
        _add_halos(canvas, picture, light)
    picture = _blurred(_blurred(picture, light.blur), light.blur)
    noise = draws.array(*picture.shape) + draws.array(*picture.shape) - 1
    grey = draws.array(1, *picture.shape[1:]) - np.float32(0.5)
    picture += (noise + grey) * light.noise * (0.6 + 0.8 * picture)
    picture = 0.45 + (picture - 0.45) * light.contrast
    return np.ascontiguousarray(np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _sky(canvas: Canvas, draws: Draws, light: Light) -> list[Field]:
    """Three planes [H, W]: from the horizon's colour to the zenith's, with clouds in between."""
    v, u = canvas.camera.v, canvas.camera.u
    rise = ramp(-v, -0.02, 0.4)
    flat = 60 / (np.maximum(-v, 0) + 0.25)
    start = draws.between(0, 256)
    noise = texture("cloud", flat + start, u[None, :] * flat + start * 3)
    amount = ramp(noise, 0.85 - 0.6 * light.cover, 1.05 - 0.5 * light.cover) * (0.3 + 0.7 * rise)
    shade = 1.04 - 0.22 * noise
    planes = []
    for low, high, cloud in zip(light.horizon, light.zenith, light.cloud, strict=True):
        plane = low + (high - low) * rise
        planes.append((plane + (cloud - plane) * amount) * shade)
    return planes


def _add_halos(canvas: Canvas, picture: Field, light: Light) -> None:
    height, width = canvas.mask.shape
    for row, col, radius, depth, colour in canvas.halos:
        reach = int(radius * 7) + 2
        rows = slice(max(int(row) - reach, 0), min(int(row) + reach + 1, height))
        cols = slice(max(int(col) - reach, 0), min(int(col) + reach + 1, width))
        inside = 0 <= row < height and 0 <= col < width
        # A lamp behind something nearer does not shine through it.
        if not inside or canvas.depth[int(row), int(col)] < depth - 1.0:
            continue
        down = (np.arange(rows.start, rows.stop) + 0.5 - row) / radius
        across = (np.arange(cols.start, cols.stop) + 0.5 - col) / radius
        square = (down * down)[:, None] + (across * across)[None, :]
        spread = (1 / (1 + square * square) + 0.3 / (1 + square)).astype(np.float32)
        spread *= ramp(square, 49, 9) / (1 + depth / light.visibility)
        picture[:, rows, cols] += np.asarray(colour, np.float32)[:, None, None] * spread


def _blurred(picture: Field, weight: float) -> Field:
    """[3, H, W] after one pass of [weight, 1 - 2 weight, weight] in both directions."""
    padded = np.pad(picture, ((0, 0), (1, 1), (0, 0)), mode="edge")
    picture = picture * (1 - 2 * weight) + (padded[:, :-2] + padded[:, 2:]) * weight
    padded = np.pad(picture, ((0, 0), (0, 0), (1, 1)), mode="edge")
    blurred: Field = picture * (1 - 2 * weight) + (padded[:, :, :-2] + padded[:, :, 2:]) * weight
    return blurred
