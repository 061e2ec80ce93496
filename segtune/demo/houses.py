"""The rows of buildings and hedges along both sides of a street."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segtune.demo.canvas import (
    BUILDING,
    FAR,
    VEGETATION,
    Camera,
    Canvas,
    Colour,
    Draws,
    Field,
    Flags,
    Region,
    fraction,
    ramp,
    rounded,
    texture,
)
from segtune.demo.plan import House, Street

WARM_LAMP: Colour = (0.7, 0.5, 0.28)


def draw_houses(canvas: Canvas, draws: Draws, street: Street, *, lit: float) -> None:
    """Draw the rows of buildings on both sides.

    Args:
        canvas: with the ground on it.
        draws: random choices.
        street: the plan.
        lit: share of windows with light inside, 0..1.
    """
    for side in (-1.0, 1.0):
        bright = 1.0 if street.sun == 0 else (0.68 if street.sun == side else 1.12)
        _draw_gables(canvas, street, side, bright=bright * draws.between(0.75, 0.9))
        row = _see_row(canvas.camera, street, side)
        if row is not None:
            _draw_facades(canvas, row, bright=bright, lit=lit)


def _draw_gables(canvas: Canvas, street: Street, side: float, *, bright: float) -> None:
    """Draw the ends of the buildings that face the camera, far ones first."""
    depth = 10.0
    houses = street.right if side > 0 else street.left
    for before, house in reversed(list(pairwise(houses))):
        hidden = before.label == BUILDING and before.height + before.roof >= house.height + house.roof
        if house.label != BUILDING or house.height == 0 or house.start < 2 or hidden:
            continue
        z = house.start
        gable = canvas.upright(side * (street.wall + depth / 2), z, depth / 2, house.height + house.roof)
        if gable is None:
            continue
        along, h = gable.across * side + depth / 2, gable.h
        slant = house.roof * (1 - np.abs(along * (2 / depth) - 1))
        where = (h > 0) & (h < house.height + slant) & (along > 0) & (along < depth)
        shade = bright * (0.8 + 0.3 * texture("grain", h * 9 + house.offset, along * 9))
        panes = (np.abs(fraction(h / house.storey) - 0.55) < 0.25) & (
            np.abs(fraction(along / 3.5) - 0.5) < 0.18
        )
        panes &= h < house.height
        colour = [
            np.where(panes, pane, wall) * shade for wall, pane in zip(house.wall, house.window, strict=True)
        ]
        gable.paint(where, colour, BUILDING)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The houses of one side as the camera's columns see them: one house and distance for each column."""

    region: Region
    houses: tuple[House, ...]
    which: NDArray[np.intp]
    """Index of the house, [w]."""
    z: Field
    """Distance along the street, metres, [w]."""
    h: Field
    """Height above the ground, metres, [h, w]."""
    visible: Flags
    """Columns that see the wall before the end of the street, [w]."""

    def column(self, value: Callable[[House], float]) -> Field:
        """A number of each column's house, [w]."""
        return np.asarray([value(house) for house in self.houses], np.float32).take(self.which)

    def colours(self, value: Callable[[House], Colour]) -> Field:
        """A colour of each column's house, [3, w]."""
        return np.asarray([value(house) for house in self.houses], np.float32).T.take(self.which, axis=1)


def _see_row(camera: Camera, street: Street, side: float) -> Row | None:
    z = _wall_distance(camera, street, side)
    columns = np.flatnonzero(z < street.end)
    if not len(columns):
        return None
    houses = street.right if side > 0 else street.left
    region = Region(slice(0, camera.height_px), slice(int(columns[0]), int(columns[-1]) + 1))
    z = z[region.cols]
    which = np.searchsorted(np.asarray([house.start for house in houses], np.float32), z, side="right") - 1
    return Row(
        region=region,
        houses=houses,
        which=which.clip(0, len(houses) - 1),
        z=z,
        h=camera.height - camera.v[:, region.cols] * z,
        visible=z < street.end,
    )


def _draw_facades(canvas: Canvas, row: Row, *, bright: float, lit: float) -> None:
    z, h = row.z, row.h
    height = row.column(lambda house: house.height)
    offset = row.column(lambda house: house.offset)
    spacing = row.column(lambda house: house.spacing)
    storey = row.column(lambda house: house.storey)
    shop = row.column(lambda house: float(house.shop)) > 0
    label = np.asarray([house.label for house in row.houses], np.uint8).take(row.which)
    green = label == VEGETATION
    noise = texture("leaf", h * 6 + offset, (z * 6 + offset)[None, :])
    grain = texture("grain", h * 12, (z * 12 + offset)[None, :])

    end = np.minimum(z - row.column(lambda house: house.start), row.column(lambda house: house.end) - z)
    crown = height * (rounded(end, 2.5) - 0.4 * noise)
    where = (h > 0) & (h < np.where(green, crown, height + row.column(lambda house: house.roof) * 0.8))
    where &= row.visible

    # Windows: `up` and `along` are places within a storey and a bay, 0..1.
    level, bay = np.floor(h / storey), np.floor(z / spacing)
    up, along = np.abs(h / storey - level - 0.52), np.abs(z / spacing - bay - 0.5)
    shop_floor = (level < 1) & shop
    tall = np.where(shop_floor, np.float32(0.36), np.float32(0.27))
    wide = np.where(shop_floor, np.float32(0.45), row.column(lambda house: house.pane / 2))
    wall = (h < height - 0.5) & ~green
    glass = (up < tall) & (along < wide) & wall
    frame = (up < tall + 0.06) & (along < wide + 0.07) & wall & ~glass
    cornice = ((np.abs(h - height) < 0.35) | (shop_floor & (h > 0.9 * storey))) & ~green
    tiles = (h > height) & ~green
    chance = texture("grain", level * 37 + offset, (bay * 53 + offset)[None, :])
    # Bays narrower than a few pixels melt into the wall.
    step = np.abs(np.diff(z, append=z[-1:]))
    step[-1:] = step[-2:-1] if len(step) > 1 else spacing
    sharp = ramp(step / spacing, 0.6, 0.25)

    shade = bright * np.where(green, 0.35 + 1.0 * noise, 0.84 + 0.14 * noise + 0.16 * grain)
    shade *= np.where(cornice, 0.7, np.where(frame, 1.12, 1)) * (0.86 + 0.14 * ramp(h, 0, 2.5))
    walls, tops = row.colours(lambda house: house.wall), row.colours(lambda house: house.top)
    panes = row.colours(lambda house: house.window)
    colour = []
    for wall_plane, top_plane, pane_plane in zip(walls, tops, panes, strict=True):
        plain = np.where(tiles, top_plane, wall_plane)
        melted = plain + (pane_plane * (0.5 + chance) - plain) * sharp
        colour.append(np.where(glass, melted, plain) * shade)
    canvas.paint(row.region, where, colour, label=np.broadcast_to(label, h.shape), depth=z)
    if lit > 0:
        # The grain lies mostly in the middle of its range.
        shining = where & glass & (chance > 0.75 - 0.35 * lit) & (sharp > 0.3)
        canvas.light(row.region, shining, WARM_LAMP)


def _wall_distance(camera: Camera, street: Street, side: float) -> Field:
    """Distance in metres at which each column's rays meet the wall of one side, [W]."""
    # x = side * wall on the bent street: u * z = gap + bend * z * z, seen from the wall's own side.
    u, bend = camera.u * side, camera.bend * side
    gap = street.wall - camera.position * side
    square = u * u - 4 * bend * gap
    below = u + np.sqrt(np.maximum(square, 0))
    hit = (square >= 0) & (below > 2 * gap / FAR)
    return np.where(hit, 2 * gap / np.where(hit, below, 1), np.float32(FAR)).astype(np.float32)
