"""The ground of a scene and what closes the street far away."""

from __future__ import annotations

import numpy as np

from segtune.demo.canvas import (
    BUILDING,
    FAR,
    PAVEMENT,
    ROAD,
    VEGETATION,
    Canvas,
    Draws,
    Field,
    Flags,
    Region,
    fraction,
    ramp,
    rounded,
    texture,
)
from segtune.demo.plan import LEAF_COLOURS, WALL_COLOURS, Street


def draw_backdrop(canvas: Canvas, draws: Draws, street: Street) -> None:
    """Close the street with far buildings and trees."""
    camera = canvas.camera
    x = (camera.u - camera.bend * street.end) * street.end
    edges = [-320.0]
    while edges[-1] < 320:
        edges.append(edges[-1] + draws.between(5, 22))
    block = np.searchsorted(np.asarray(edges, np.float32), x).clip(0, len(edges) - 1)
    heights, labels, colours = [], [], []
    leafy = draws.between(0.15, 0.85)
    for _ in edges:
        tree = draws.chance(leafy)
        heights.append(draws.between(3, 11) if tree else draws.pick((0.0, draws.between(4, 22))))
        labels.append(VEGETATION if tree else BUILDING)
        colours.append(draws.colour(LEAF_COLOURS if tree else WALL_COLOURS))
    region = Region(slice(0, camera.height_px), slice(0, camera.width_px))
    h = camera.height - camera.v * street.end
    label = np.asarray(labels, np.uint8)[block]
    noise = texture("leaf", h * 5 + draws.between(0, 99), x[None, :] * 5)
    ragged = np.where(label == VEGETATION, np.float32(4), np.float32(0))
    # Trees are round: lower towards the ends of their block.
    starts = np.asarray(edges, np.float32)
    end = np.minimum(x - starts[(block - 1).clip(0)], starts[block] - x)
    top = np.asarray(heights, np.float32)[block] * np.where(label == VEGETATION, rounded(end, 4.0), 1)
    where = (h > 0) & (h < top - ragged * noise)
    wall = np.asarray(colours, np.float32)[block].T[:, None, :] * (0.65 + 0.5 * noise)
    panes = (fraction(h / 3.2) > 0.45) & (fraction(x / 3.4) > 0.5)[None, :] & (label == BUILDING)[None, :]
    colour = wall * np.where(panes, 0.72, 1)
    canvas.paint(region, where, colour, label=np.broadcast_to(label, h.shape), depth=street.end)


def draw_ground(canvas: Canvas, draws: Draws, street: Street) -> None:
    """Draw the road with its markings, the pavements and what lies beyond them."""
    camera = canvas.camera
    tilt = abs(camera.roll) * camera.width_px / 2
    first = int(max(camera.horizon - tilt, 0))
    region = Region(slice(first, camera.height_px), slice(0, camera.width_px))
    u, v = canvas.slopes(region)
    z = camera.height / np.maximum(v, np.float32(camera.height / FAR))
    x = (u - camera.bend * z) * z + camera.position
    aside = np.abs(x)
    detail = ramp(z, 45, 12)

    asphalt = draws.colour(
        ((0.34, 0.34, 0.35), (0.44, 0.43, 0.42), (0.27, 0.27, 0.29), (0.50, 0.49, 0.48)), 0.05
    )
    slabs = draws.colour(
        ((0.58, 0.56, 0.53), (0.50, 0.49, 0.48), (0.62, 0.55, 0.48), (0.42, 0.42, 0.42)), 0.05
    )
    grass = draws.colour(((0.30, 0.40, 0.17), (0.40, 0.42, 0.22), (0.24, 0.32, 0.16)))
    start = draws.between(0, 200)
    grain = texture("grain", z * 22 + start, x * 22)
    patches = texture("cloud", z * 5, x * 9 + start)

    on_road = aside < street.road
    if street.crossing is not None:
        on_road |= (z > street.crossing) & (z < street.crossing + 8)
    on_verge = ~on_road & (aside > street.wall - (1.5 if street.verge else 0.0))
    label = np.where(on_road, np.uint8(ROAD), np.uint8(PAVEMENT))
    if street.verge:
        label[on_verge] = VEGETATION

    shade = (0.82 + 0.26 * patches) * (1 + (grain - 0.5) * (0.1 + 0.35 * detail))
    joints = (fraction(x / 0.75) < 0.1) | (fraction(z / 0.75) < 0.1)
    shade *= np.where(joints & ~on_road, 1 - 0.28 * detail, 1)
    kerb = ~on_road & (aside < street.road + 0.22)
    shade *= np.where(kerb, 1.22, 1)
    gutter = on_road & (aside > street.road - 0.25)
    shade *= np.where(gutter, 0.78, 1)
    if street.sun != 0:
        shade *= _wall_shadow(street, x, z, reach=draws.between(0.15, 0.9), strength=draws.between(0.35, 0.6))

    marks = _markings(draws, street, x, z) & on_road & (patches + 0.5 * grain > draws.between(0.1, 0.6))
    paint = draws.between(0.7, 0.95)
    on_grass = label == VEGETATION
    colour = [
        np.where(marks, np.float32(paint), np.where(on_road, dark, np.where(on_grass, green, light))) * shade
        for dark, light, green in zip(asphalt, slabs, grass, strict=True)
    ]
    canvas.paint(region, v > camera.height / FAR, colour, label=label, depth=z)


def _wall_shadow(street: Street, x: Field, z: Field, *, reach: float, strength: float) -> Field:
    """Light that is left where the buildings on the sun's side keep it off, [h, w]."""
    houses = street.right if street.sun > 0 else street.left
    height_at = np.zeros(int(FAR) + 2, np.float32)
    for house in houses:
        height_at[max(int(house.start), 0) : max(int(house.end), 0)] = house.height
    covered = height_at.take(z.astype(np.int32)) * reach
    return 1 - strength * ramp(street.wall - x * street.sun, covered + 0.3, covered)


def _markings(draws: Draws, street: Street, x: Field, z: Field) -> Flags:
    """Where the road is painted, [h, w] bool."""
    aside = np.abs(x)
    dash, length = draws.between(0.3, 0.6), draws.between(5, 9)
    style = draws.integer(0, 3)
    middle = aside < 0.09
    if style < 2:
        middle &= fraction(z / length) < dash
    elif style == 2:
        middle = (aside > 0.08) & (aside < 0.2)
    marks = middle if draws.chance(0.85) else np.zeros(x.shape, bool)
    if street.lanes == 4:
        marks |= (np.abs(aside - street.road / 2) < 0.08) & (fraction(z / length) < dash)
    if draws.chance(0.5):
        marks |= np.abs(aside - (street.road - draws.between(0.4, 0.8))) < 0.07
    if street.crossing is not None:
        marks &= (z < street.crossing - 1) | (z > street.crossing + 9)
    if street.zebra is not None:
        across = (z > street.zebra) & (z < street.zebra + 3.2)
        marks &= (z < street.zebra - 1.5) | (z > street.zebra + 4)
        marks |= across & (fraction(x / draws.between(0.9, 1.2)) < 0.5)
        marks |= (z > street.zebra - 1.6) & (z < street.zebra - 1.2) & (x > 0)
    return marks
