"""The cars of a scene: along the street, seen from an end and a flank, or across it, seen from the side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segtune.demo.canvas import CAR, Canvas, Colour, Draws, ramp

CAR_COLOURS: tuple[Colour, ...] = (
    (0.82, 0.82, 0.83),
    (0.70, 0.71, 0.72),
    (0.48, 0.50, 0.53),
    (0.22, 0.23, 0.25),
    (0.60, 0.61, 0.63),
    (0.38, 0.39, 0.41),
    (0.13, 0.13, 0.14),
    (0.55, 0.10, 0.10),
    (0.14, 0.22, 0.45),
    (0.30, 0.36, 0.30),
    (0.62, 0.55, 0.42),
    (0.75, 0.60, 0.15),
)
TYRE: Colour = (0.07, 0.07, 0.07)
RED_LAMP: Colour = (0.85, 0.12, 0.08)
WHITE_LAMP: Colour = (1.0, 0.95, 0.82)


@dataclass(frozen=True, kw_only=True)
class Car:
    """A car's shape in metres, and its colours."""

    van: bool
    width: float
    length: float
    floor: float
    """Height of the underside."""
    belt: float
    """Height of the lower edge of the windows."""
    top: float
    paint: Colour
    glass: Colour


def draw_car(canvas: Canvas, draws: Draws, x: float, z: float, *, lamps: bool) -> None:
    """Draw a car that drives or stands along the street; the near end is at distance z."""
    van = draws.chance(0.2)
    top = draws.between(1.9, 2.5) if van else draws.between(1.38, 1.7)
    car = Car(
        van=van,
        width=draws.between(1.65, 1.95),
        length=draws.between(4.6, 6.0) if van else draws.between(3.6, 4.7),
        floor=draws.between(0.18, 0.28),
        belt=top * (0.62 if van else draws.between(0.56, 0.64)),
        top=top,
        paint=draws.colour(CAR_COLOURS, 0.08),
        glass=draws.colour(((0.14, 0.16, 0.18), (0.30, 0.35, 0.40), (0.48, 0.54, 0.60))),
    )
    driving = abs(x) < 3
    facing = x < 0 if driving else draws.chance(0.5)
    lamps = lamps and draws.chance(0.75 if driving else 0.3)
    canvas.shadow(x, z + car.length / 2, car.width * 0.62, car.length * 0.62, 0.62)
    _draw_flank(canvas, car, x, z)
    _draw_end(canvas, car, x, z, facing=facing, lamps=lamps)


def _draw_end(canvas: Canvas, car: Car, x: float, z: float, *, facing: bool, lamps: bool) -> None:
    """The front (`facing`) or the back, towards the camera."""
    half = car.width / 2
    end = canvas.upright(x, z, half, car.top)
    if end is None:
        return
    h, aside = end.h, np.abs(end.across) * (1 / half)
    slant = ramp(h, car.belt, car.top)
    body = (h > car.floor) & (h < car.top) & (aside < 1 - (0.06 if car.van else 0.26) * slant)
    corner = (slant > 0.9) & (aside > 0.66)
    tyres = (h > 0) & (h <= car.floor + 0.12) & (aside > 0.68) & (aside < 0.95)
    shine = 0.78 + 0.22 * ramp(h, car.floor, car.belt) - 0.1 * aside * aside
    end.paint(body & ~corner, [value * shine for value in car.paint], CAR)
    end.paint(tyres & ~body, TYRE, CAR)
    pane = (h > car.belt + 0.04) & (h < car.top - 0.14) & (aside < 0.86 - 0.26 * slant)
    end.tint(pane & body, [value * (0.7 + 0.5 * slant) for value in car.glass])
    end.tint(body & (h < car.floor + 0.16), [value * 0.45 for value in car.paint])
    plate = (np.abs(h - car.belt * 0.62) < 0.08) & (aside < 0.28)
    end.tint(plate, (0.75, 0.74, 0.68))
    lamp_h = car.belt - 0.16
    lamp = (np.abs(h - lamp_h) < 0.1) & (aside > 0.64) & (aside < 0.94) & body
    colour = WHITE_LAMP if facing else RED_LAMP
    end.tint(lamp, [value * 0.8 for value in colour])
    if lamps:
        end.light(lamp, colour)
        for side in (-1, 1):
            canvas.halo((x + side * half * 0.8, lamp_h, z), 0.28 if facing else 0.15, colour)


def _draw_flank(canvas: Canvas, car: Car, x: float, z: float) -> None:
    """The flank that the camera sees: a plane along the street, bent as the street is at z."""
    camera = canvas.camera
    bearing = 2 * camera.bend * z
    seen_from = x - camera.position - camera.bend * z * z
    side = -1.0 if seen_from > 0 else 1.0
    plane = seen_from + side * car.width / 2
    if plane * side >= 0:
        return  # straight ahead: no flank in sight
    ends = (plane / z + bearing, plane / (z + car.length) + bearing)
    region = camera.region(min(ends), max(ends), car.top, z)
    if region is None:
        return
    u, v = canvas.slopes(region)
    # The column in which the plane is seen edge-on lies outside of the flank.
    turned = u - bearing
    ahead = plane / np.where(turned * plane > 1e-4, turned, 1e-4 if plane > 0 else -1e-4)
    h = camera.height - v * ahead
    along = (ahead - z) / car.length
    roof = ramp(along, 0.0, 0.12) if car.van else ramp(along, 0.0, 0.2) * ramp(along, 0.85, 0.65)
    lid = car.belt + (car.top - car.belt) * roof
    wheel_radius = 0.32
    wheels = np.zeros(h.shape, bool)
    for hub in (0.19, 0.8):
        wheels |= ((along - hub) * car.length) ** 2 + (h - wheel_radius) ** 2 < wheel_radius**2
    on = (along > 0) & (along < 1)
    body = on & (h > car.floor) & (h < lid)
    shine = 0.62 + 0.25 * ramp(h, car.floor, car.belt)
    canvas.paint(region, body, [value * shine for value in car.paint], label=CAR, depth=ahead)
    canvas.paint(region, wheels & on, TYRE, label=CAR, depth=ahead)
    pane = (
        (h > car.belt + 0.03)
        & (h < lid - 0.1)
        & (np.abs(along - 0.45) < 0.31)
        & (np.abs(along - 0.46) > 0.02)
    )
    canvas.tint(region, body & pane, car.glass)


def draw_crossing_car(canvas: Canvas, draws: Draws, x: float, z: float, *, lamps: bool) -> None:
    """Draw a car from its side, driving across the street at distance z."""
    length, top = draws.between(3.8, 4.8), draws.between(1.4, 1.75)
    belt, floor = top * 0.58, 0.24
    paint = draws.colour(CAR_COLOURS, 0.08)
    glass = draws.colour(((0.14, 0.16, 0.18), (0.34, 0.39, 0.44)))
    forward = draws.pick((-1.0, 1.0))
    half = length / 2
    flank = canvas.upright(x, z, half, top)
    if flank is None:
        return
    canvas.shadow(x, z + 0.8, half * 1.05, 1.2, 0.6)
    h, along = flank.h, flank.across * (forward / half)
    bonnet = belt * (1 - 0.22 * ramp(along, 0.45, 1.0))
    cabin = (top - belt) * ramp(along, -0.95, -0.6) * ramp(along, 0.55, 0.12)
    lid = bonnet + cabin
    wheels = np.zeros(h.shape, bool)
    hubs = np.zeros(h.shape, bool)
    for hub in (-0.62, 0.62):
        square = ((along - hub) * half) ** 2 + (h - 0.32) ** 2
        wheels |= square < 0.32**2
        hubs |= square < 0.16**2
    body = (h > floor) & (h < lid) & (np.abs(along) < 1)
    flank.paint(body, [value * (0.66 + 0.3 * ramp(h, floor, belt)) for value in paint], CAR)
    flank.tint(body & (h > belt + 0.03) & (h < lid - 0.1) & (np.abs(along + 0.2) > 0.03), glass)
    flank.paint(wheels, TYRE, CAR)
    flank.tint(hubs, (0.42, 0.42, 0.43))
    if lamps:
        canvas.halo((x + forward * half, belt * 0.8, z), 0.22, WHITE_LAMP)
        canvas.halo((x - forward * half, belt * 0.85, z), 0.12, RED_LAMP)
