"""Colours for classes: distinct defaults, and the palettes of well-known data sets."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, field

from segtune.data.base import Colour

_FIRST: tuple[Colour, ...] = (
    (0, 0, 0),
    (230, 60, 60),
    (60, 150, 240),
    (80, 190, 90),
    (250, 190, 40),
    (160, 90, 210),
    (40, 200, 200),
    (245, 130, 50),
    (240, 110, 190),
    (150, 110, 70),
    (180, 210, 60),
    (110, 120, 150),
)
_GOLDEN_ANGLE = 0.618033988749895


def default_palette(num_classes: int) -> tuple[Colour, ...]:
    """Distinct colours, the first black, the same on every machine.

    Args:
        num_classes: how many colours, 1..255.
    """
    colours = list(_FIRST[:num_classes])
    used = set(colours)
    step = 0
    while len(colours) < num_classes:
        hue = (0.11 + step * _GOLDEN_ANGLE) % 1.0
        saturation, value = (0.85, 0.6, 0.95)[step % 3], (0.95, 0.75, 0.55)[step // 3 % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colour = (round(red * 255), round(green * 255), round(blue * 255))
        if colour not in used:
            used.add(colour)
            colours.append(colour)
        step += 1
    return tuple(colours)


@dataclass(frozen=True, kw_only=True)
class KnownPalette:
    """The colour coding of a published data set."""

    title: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    """One for each class."""
    ignored: tuple[Colour, ...] = ()
    """Colours of pixels that count for nothing."""
    telling: frozenset[Colour] = field(default=frozenset())
    """Colours so unusual that one of them is proof enough."""

    def matches(self, found: set[Colour], *, minimum: int = 5) -> bool:
        """Whether masks with these colours are coded in this way.

        Args:
            found: every colour of every mask.
            minimum: so many colours are asked for where none of them is telling, since a
                few primary colours may well be somebody's own choice.
        """
        if not found <= {*self.colours, *self.ignored}:
            return False
        return bool(found & self.telling) or len(found) >= minimum


def _palette(
    title: str,
    classes: Mapping[str, Colour],
    ignored: tuple[Colour, ...],
    telling: tuple[Colour, ...],
) -> KnownPalette:
    return KnownPalette(
        title=title,
        names=tuple(classes),
        colours=tuple(classes.values()),
        ignored=ignored,
        telling=frozenset(telling),
    )


VOC = _palette(
    "PASCAL VOC",
    {
        "background": (0, 0, 0),
        "aeroplane": (128, 0, 0),
        "bicycle": (0, 128, 0),
        "bird": (128, 128, 0),
        "boat": (0, 0, 128),
        "bottle": (128, 0, 128),
        "bus": (0, 128, 128),
        "car": (128, 128, 128),
        "cat": (64, 0, 0),
        "chair": (192, 0, 0),
        "cow": (64, 128, 0),
        "dining table": (192, 128, 0),
        "dog": (64, 0, 128),
        "horse": (192, 0, 128),
        "motorbike": (64, 128, 128),
        "person": (192, 128, 128),
        "potted plant": (0, 64, 0),
        "sheep": (128, 64, 0),
        "sofa": (0, 192, 0),
        "train": (128, 192, 0),
        "tv monitor": (0, 64, 128),
    },
    ignored=((224, 224, 192),),
    telling=((224, 224, 192),),
)

CITYSCAPES = _palette(
    "Cityscapes",
    {
        "road": (128, 64, 128),
        "sidewalk": (244, 35, 232),
        "building": (70, 70, 70),
        "wall": (102, 102, 156),
        "fence": (190, 153, 153),
        "pole": (153, 153, 153),
        "traffic light": (250, 170, 30),
        "traffic sign": (220, 220, 0),
        "vegetation": (107, 142, 35),
        "terrain": (152, 251, 152),
        "sky": (70, 130, 180),
        "person": (220, 20, 60),
        "rider": (255, 0, 0),
        "car": (0, 0, 142),
        "truck": (0, 0, 70),
        "bus": (0, 60, 100),
        "train": (0, 80, 100),
        "motorcycle": (0, 0, 230),
        "bicycle": (119, 11, 32),
    },
    ignored=(
        (0, 0, 0),
        (111, 74, 0),
        (81, 0, 81),
        (250, 170, 160),
        (230, 150, 140),
        (180, 165, 180),
        (150, 100, 100),
        (150, 120, 90),
        (0, 0, 90),
        (0, 0, 110),
    ),
    telling=((244, 35, 232), (107, 142, 35), (152, 251, 152), (119, 11, 32), (70, 130, 180)),
)

CAMVID = _palette(
    "CamVid",
    {
        "sky": (128, 128, 128),
        "building": (128, 0, 0),
        "pole": (192, 192, 128),
        "road": (128, 64, 128),
        "pavement": (60, 40, 222),
        "tree": (128, 128, 0),
        "sign symbol": (192, 128, 128),
        "fence": (64, 64, 128),
        "car": (64, 0, 128),
        "pedestrian": (64, 64, 0),
        "bicyclist": (0, 128, 192),
    },
    ignored=((0, 0, 0),),
    telling=((60, 40, 222), (192, 192, 128), (0, 128, 192)),
)

KNOWN_PALETTES = (VOC, CITYSCAPES, CAMVID)
"""In the order in which they are tried."""
