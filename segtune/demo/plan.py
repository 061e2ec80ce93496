"""The plan of a scene: how wide the street is, what stands beside it and where things are on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segtune.demo.canvas import BUILDING, VEGETATION, Colour, Draws

WALL_COLOURS: tuple[Colour, ...] = (
    (0.62, 0.36, 0.27),
    (0.72, 0.62, 0.48),
    (0.78, 0.75, 0.68),
    (0.55, 0.54, 0.53),
    (0.42, 0.42, 0.45),
    (0.80, 0.68, 0.45),
    (0.52, 0.45, 0.38),
    (0.60, 0.66, 0.70),
    (0.70, 0.52, 0.46),
    (0.36, 0.30, 0.27),
    (0.55, 0.60, 0.50),
)
ROOF_COLOURS: tuple[Colour, ...] = ((0.48, 0.24, 0.18), (0.30, 0.29, 0.31), (0.40, 0.33, 0.28))
LEAF_COLOURS: tuple[Colour, ...] = (
    (0.22, 0.36, 0.14),
    (0.30, 0.42, 0.16),
    (0.17, 0.29, 0.15),
    (0.38, 0.40, 0.20),
    (0.50, 0.38, 0.16),
)
WINDOW_COLOURS: tuple[Colour, ...] = (
    (0.16, 0.18, 0.21),
    (0.24, 0.28, 0.34),
    (0.42, 0.50, 0.58),
    (0.10, 0.10, 0.11),
)


@dataclass(frozen=True, kw_only=True)
class House:
    """What stands beside the street between two distances; height 0 where nothing does."""

    start: float
    end: float
    height: float = 0.0
    roof: float = 0.0
    """Height of the pitched roof above the wall; 0 for a flat one."""
    label: int = BUILDING
    wall: Colour = (0.0, 0.0, 0.0)
    top: Colour = (0.0, 0.0, 0.0)
    window: Colour = (0.0, 0.0, 0.0)
    spacing: float = 3.0
    storey: float = 3.0
    pane: float = 0.5
    """Share of the spacing that is glass."""
    shop: bool = False
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Street:
    """The plan of a street; x = 0 is the middle of the road, all in metres."""

    road: float
    """Half the width of the road."""
    wall: float
    """Distance of the buildings from the middle of the road."""
    end: float
    """Distance at which something closes the street."""
    crossing: float | None
    """Distance of a crossing street, which is 8 m wide."""
    zebra: float | None
    lanes: int
    verge: bool
    """Grass in front of the buildings and between them."""
    left: tuple[House, ...]
    right: tuple[House, ...]
    sun: float
    """Side that the sun shines from: -1 left, 1 right, 0 none (no shadows)."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """Something that stands or moves on the street, in metres."""

    kind: Literal["car", "crossing car", "person", "tree", "pole"]
    x: float
    z: float


def plan_street(draws: Draws, *, sunny: bool) -> Street:
    """Choose the plan of a street."""
    style = draws.pick(("city", "city", "town", "suburb"))
    road = draws.between(3.2, 6.5)
    end = draws.between(55, 130)
    crossing = draws.between(12, 34) if draws.chance(0.45) else None
    wall = road + draws.between(2.6, 5.2) + (draws.between(2, 5) if style == "suburb" else 0.0)
    zebra = None
    if crossing is not None and draws.chance(0.6):
        zebra = crossing - draws.between(3.5, 4.5)
    elif draws.chance(0.2):
        zebra = draws.between(7, 20)
    return Street(
        road=road,
        wall=wall,
        end=end,
        crossing=crossing,
        zebra=zebra,
        lanes=4 if road > 5.4 else 2,
        verge=style == "suburb" or draws.chance(0.15),
        left=_plan_side(draws, style, end, crossing),
        right=_plan_side(draws, style, end, crossing),
        sun=draws.pick((-1.0, 1.0)) if sunny else 0.0,
    )


def _plan_side(draws: Draws, style: str, end: float, crossing: float | None) -> tuple[House, ...]:
    lowest, highest = {"city": (9.0, 24.0), "town": (6.0, 12.0), "suburb": (3.5, 6.5)}[style]
    gap = {"city": 0.06, "town": 0.15, "suburb": 0.4}[style]
    green = {"city": 0.06, "town": 0.12, "suburb": 0.22}[style]
    if draws.chance(0.12):
        gap, green = 0.2, 0.7  # a park
    houses: list[House] = []
    start = draws.between(-6, 3)
    while start < end:
        stop = start + draws.between(6, 18)
        if crossing is not None and start < crossing < stop:
            stop = max(crossing, start + 0.1)
        if crossing is not None and crossing <= start < crossing + 8:
            houses.append(House(start=start, end=crossing + 8.5))
            start = crossing + 8.5
            continue
        kind = draws.between(0, 1)
        if kind < gap:
            stop = start + draws.between(3, 8)
            houses.append(House(start=start, end=stop))
        elif kind < gap + green:
            houses.append(
                House(
                    start=start,
                    end=stop,
                    height=draws.pick((draws.between(1, 2.2), draws.between(4, 9))),
                    label=VEGETATION,
                    wall=draws.colour(LEAF_COLOURS),
                    offset=draws.between(0, 200),
                )
            )
        else:
            houses.append(
                House(
                    start=start,
                    end=stop,
                    height=draws.between(lowest, highest),
                    roof=draws.between(1.5, 3.5) if style != "city" and draws.chance(0.75) else 0.0,
                    wall=draws.colour(WALL_COLOURS, 0.12),
                    top=draws.colour(ROOF_COLOURS),
                    window=draws.colour(WINDOW_COLOURS),
                    spacing=draws.between(1.7, 4.0),
                    storey=draws.between(2.7, 3.8),
                    pane=draws.between(0.35, 0.75),
                    shop=style != "suburb" and draws.chance(0.5),
                    offset=draws.between(0, 200),
                )
            )
        start = stop
    return tuple(houses)


def plan_things(draws: Draws, street: Street) -> list[Thing]:
    """Choose what is on a street, far things first."""
    things: list[Thing] = []
    kerb, room = street.road, street.wall - street.road

    def beside(low: float, high: float) -> float:
        """Across a pavement of either side; 0 is its kerb, 1 the buildings."""
        return draws.pick((-1.0, 1.0)) * (kerb + room * draws.between(low, high))

    for side in (-1.0, 1.0):
        z = draws.between(4, 10)
        while draws.chance(0.72) and z < 45:
            things.append(Thing(kind="car", x=side * (kerb - draws.between(0.9, 1.1)), z=z))
            z += draws.between(5.5, 10)
        z = draws.between(5, 20)
        while draws.chance(0.6) and z < 70:
            away = draws.between(0.5, 1.0) * min(room, 3.0)
            things.append(Thing(kind="tree", x=side * (kerb + away), z=z))
            z += draws.between(5, 14)
    for _ in range(draws.integer(0, 3)):
        lane = draws.pick((-1.0, 1.0)) * kerb * draws.between(0.25, 0.45)
        things.append(Thing(kind="car", x=lane, z=draws.between(8, 55)))
    if street.crossing is not None:
        start = street.crossing
        things.extend(
            Thing(kind="crossing car", x=draws.between(-14, 14), z=start + draws.between(1, 6))
            for _ in range(draws.integer(0, 2))
        )
    for _ in range(draws.integer(0, 3)):
        z = draws.between(9, 30) if street.zebra is None else street.zebra + draws.between(0.5, 2.5)
        things.append(Thing(kind="person", x=draws.between(-1, 1) * kerb, z=max(z, 4.5)))
    things.extend(
        Thing(kind="person", x=beside(0.1, 0.9), z=draws.between(4.5, 16))
        for _ in range(draws.integer(3, 10))
    )
    things.extend(
        Thing(kind="pole", x=beside(0.05, 0.35), z=draws.between(4.5, 26)) for _ in range(draws.integer(4, 9))
    )
    return sorted(things, key=lambda thing: -thing.z)
