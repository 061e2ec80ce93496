"""What stands on the street beside the cars: people, trees, poles with signs and lamps."""

from __future__ import annotations

import numpy as np

from segtune.demo.canvas import (
    PERSON,
    POLE,
    VEGETATION,
    Canvas,
    Colour,
    Draws,
    Flags,
    Upright,
    ramp,
    texture,
)
from segtune.demo.plan import LEAF_COLOURS

CLOTHES: tuple[Colour, ...] = (
    (0.12, 0.12, 0.15),
    (0.20, 0.24, 0.38),
    (0.50, 0.15, 0.14),
    (0.62, 0.60, 0.56),
    (0.36, 0.33, 0.28),
    (0.25, 0.36, 0.22),
    (0.72, 0.55, 0.20),
    (0.42, 0.42, 0.45),
)
SKIN: tuple[Colour, ...] = ((0.80, 0.62, 0.50), (0.62, 0.45, 0.34), (0.38, 0.26, 0.20))
METAL: tuple[Colour, ...] = ((0.45, 0.46, 0.47), (0.28, 0.29, 0.30), (0.20, 0.24, 0.22), (0.60, 0.60, 0.60))
SIGNS: tuple[Colour, ...] = ((0.72, 0.12, 0.12), (0.12, 0.26, 0.62), (0.85, 0.80, 0.78), (0.82, 0.65, 0.12))


def draw_person(canvas: Canvas, draws: Draws, x: float, z: float) -> None:
    """Draw a pedestrian, seen from any side."""
    tall = draws.between(1.55, 1.92) if draws.chance(0.88) else draws.between(1.0, 1.4)
    figure = canvas.upright(x, z, 0.3 * tall, tall)
    if figure is None:
        return
    canvas.shadow(x, z, 0.4, 0.4, 0.5)
    across, h = figure.across / tall, figure.h / tall
    coat, trousers = draws.colour(CLOTHES, 0.1), draws.colour(CLOTHES, 0.1)
    skin = draws.pick(SKIN)
    hair = draws.pick(((0.12, 0.09, 0.07), (0.40, 0.30, 0.18), (0.55, 0.52, 0.50)))
    stride, lean = draws.between(0.01, 0.11), draws.between(-0.02, 0.02)
    bulk = draws.between(0.085, 0.13)
    hem = draws.between(0.42, 0.5) if draws.chance(0.75) else draws.between(0.2, 0.38)
    parts: list[tuple[Flags, Colour]] = []
    drop = 0.5 - h
    for side, width in ((-1, 0.052), (1, 0.055)):
        leg = np.abs(across - side * (0.035 + stride * drop * 2)) < width - 0.02 * drop
        parts.append((leg & (h > 0) & (h < 0.52), trousers))
        feet = (h > 0) & (h < 0.035) & (np.abs(across - side * (0.045 + stride)) < 0.06)
        parts.append((feet, (0.10, 0.09, 0.09)))
    swing = draws.between(-0.12, 0.12)
    for side in (-1, 1):
        reach = side * (bulk + 0.02) + swing * side * (0.8 - h)
        parts.append(((np.abs(across - reach) < 0.032) & (h > 0.45) & (h < 0.8), coat))
    girth = bulk * (0.85 + 0.25 * np.abs(h - 0.58) * 3) * ramp(h, 0.87, 0.79)
    parts.append(((np.abs(across - lean) < girth) & (h > hem) & (h < 0.86), coat))
    if draws.chance(0.35):
        hand = draws.pick((-1, 1)) * (bulk + 0.03)
        bag = (np.abs(across - hand) < 0.06) & (np.abs(h - draws.between(0.4, 0.65)) < 0.09)
        parts.append((bag, draws.colour(CLOTHES)))
    head = ((across - lean) / 0.062) ** 2 + ((h - 0.92) / 0.08) ** 2 < 1
    parts.append((head, hair if draws.chance(0.4) else skin))
    parts.append((head & (h > 0.945), hair))
    folds = 0.72 + 0.45 * texture("grain", h * 40 + x * 31, across * 40) + 1.2 * across * draws.pick((-1, 1))
    for where, colour in parts:
        figure.paint(where, [value * folds for value in colour], PERSON)


def draw_tree(canvas: Canvas, draws: Draws, x: float, z: float) -> None:
    """Draw a tree, its crown a cloud of leafy balls with holes, or a bush."""
    bush = draws.chance(0.2)
    tall = draws.between(0.9, 1.8) if bush else draws.between(4.5, 9.5)
    wide = tall * (draws.between(0.5, 0.9) if bush else draws.between(0.22, 0.38))
    crown = 0.0 if bush else tall * draws.between(0.28, 0.42)
    leaf = draws.colour(LEAF_COLOURS, 0.08)
    seed = draws.between(0, 200)
    sparse = draws.between(-0.1, 0.25)
    canvas.shadow(x, z, wide * 1.1, wide * 1.1, 0.4)
    if not bush:
        _trunk(canvas, draws, x, z, tall=(crown + tall) / 2)
    foliage = canvas.upright(x, z, wide * 1.35, tall * 1.1)
    if foliage is None:
        return
    across, h = foliage.across, foliage.h
    balls = np.full(h.shape, 9.0, np.float32)
    for _ in range(draws.integer(4, 7)):
        ball_x = draws.between(-0.55, 0.55) * wide
        ball_h = crown + (tall - crown) * draws.between(0.3, 0.75)
        radius = wide * draws.between(0.4, 0.65)
        ball = ((across - ball_x) ** 2 + ((h - ball_h) * (0.9 if bush else 0.7)) ** 2) * (
            1 / (radius * radius)
        )
        np.minimum(balls, ball, out=balls)
    leaves = texture("leaf", h * 14 + seed, across * 14 + seed * 3)
    clumps = texture("leaf", h * 4 + seed, across * 4 + seed)
    solid = 1.25 - balls - 0.9 * (1 - clumps) - 0.5 * (0.5 - leaves)
    where = (solid > 0) & ((leaves > 0.32 + sparse) | (solid > 0.45 + sparse)) & (h > 0)
    shade = (0.25 + 1.0 * leaves) * (0.6 + 0.5 * ramp(h, crown, tall)) * (0.75 + 0.5 * clumps)
    foliage.paint(where, [value * shade for value in leaf], VEGETATION)


def _trunk(canvas: Canvas, draws: Draws, x: float, z: float, *, tall: float) -> None:
    half = draws.between(0.1, 0.22)
    trunk = canvas.upright(x, z, 2 * half, tall)
    if trunk is None:
        return
    across, h = trunk.across, trunk.h
    bark = draws.colour(((0.30, 0.23, 0.17), (0.40, 0.36, 0.31), (0.20, 0.17, 0.14)))
    where = (np.abs(across) < half * (1 + 0.6 * ramp(h, 0.5, 0.0))) & (h > 0) & (h < tall)
    shade = 0.6 + 0.6 * texture("leaf", h * 6 + x * 31, across * 30) + across / half * 0.15
    trunk.paint(where, [value * shade for value in bark], VEGETATION)


def draw_pole(canvas: Canvas, draws: Draws, x: float, z: float, *, lamps: bool) -> None:
    """Draw a pole with a road sign, a traffic light or a street lamp; never thinner than a pixel."""
    kind = draws.pick(("sign", "sign", "lamp", "signal", "bollard"))
    tall = {
        "sign": draws.between(2.3, 3.2),
        "lamp": draws.between(5.5, 9.0),
        "signal": draws.between(2.8, 3.8),
        "bollard": draws.between(0.8, 1.1),
    }[kind]
    half = max(draws.between(0.06, 0.11), 0.75 * z / canvas.camera.focal)
    metal = draws.colour(METAL)
    pole = canvas.upright(x, z, 1.8 if kind == "lamp" else 0.6, tall + 0.5)
    if pole is None:
        return
    across, h = pole.across, pole.h
    post = (np.abs(across) < half) & (h > 0) & (h < tall)
    pole.paint(post, [value * (1 - 0.3 * across / half) for value in metal], POLE)
    if kind == "sign":
        _sign(draws, pole, tall)
    elif kind == "signal":
        _signal(draws, pole, tall, lamps=lamps)
    elif kind == "lamp":
        inwards = -1.0 if x > 0 else 1.0
        arm = (across * inwards > 0) & (across * inwards < 1.5) & (np.abs(h - tall) < half)
        head = (np.abs(across * inwards - 1.35) < 0.3) & (np.abs(h - tall) < max(0.1, half))
        pole.paint(arm | head, metal, POLE)
        if lamps and draws.chance(0.8):
            pole.light(head, (1.0, 0.88, 0.6))
            canvas.halo((x + inwards * 1.35, tall, z), 0.35, (0.9, 0.72, 0.42))


def _sign(draws: Draws, pole: Upright, tall: float) -> None:
    across, h = pole.across, pole.h - tall
    size = draws.between(0.3, 0.45)
    colour = draws.colour(SIGNS)
    inner = (0.85, 0.84, 0.82) if draws.chance(0.6) else draws.colour(SIGNS)
    aside, below = np.abs(across), np.abs(h)
    shape = draws.integer(0, 2)
    if shape == 0:
        distance = (across * across + h * h) / (size * size)
    elif shape == 1:
        distance = np.maximum(aside, below * draws.between(0.7, 1.4)) / size
    else:
        distance = np.maximum(aside * 1.15 + 0.55 * h, -1.1 * h) / (size * 0.7)
    pole.paint(distance < 1, colour, POLE)
    pole.tint(distance < 0.5, inner)


def _signal(draws: Draws, pole: Upright, tall: float, *, lamps: bool) -> None:
    across, h = pole.across, pole.h - tall
    box = (np.abs(across) < 0.17) & (h > -0.45) & (h < 0.45)
    pole.paint(box, (0.09, 0.10, 0.09), POLE)
    bright = draws.integer(0, 2)
    for place, colour in enumerate(((0.9, 0.15, 0.1), (0.95, 0.65, 0.1), (0.15, 0.8, 0.45))):
        lens = across * across + (h - 0.28 + 0.28 * place) ** 2 < 0.11**2
        on = place == bright
        pole.tint(lens, colour if on else [value * 0.25 for value in colour])
        if on and lamps:
            pole.light(lens, colour)
