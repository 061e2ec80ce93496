"""The labels of Cityscapes, which GTA5 shares: numbers, names, colours, and the 19 that are trained on.

Source: Cordts et al. 2016, The Cityscapes Dataset, and its published table of labels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from segtune.data.base import Classes, Colour
from segtune.data.known import KnownCoding
from segtune.types import IGNORE_INDEX

UNUSED = "unused"
VOID = "void"


class Label(NamedTuple):
    """One label; its number is its place in `LABELS`."""

    name: str
    colour: Colour
    trained: bool
    """Whether it is one of the 19 classes."""


LABELS = (
    Label("unlabelled", (0, 0, 0), False),
    Label("ego vehicle", (0, 0, 0), False),
    Label("rectification border", (0, 0, 0), False),
    Label("out of roi", (0, 0, 0), False),
    Label("static", (0, 0, 0), False),
    Label("dynamic", (111, 74, 0), False),
    Label("ground", (81, 0, 81), False),
    Label("road", (128, 64, 128), True),
    Label("sidewalk", (244, 35, 232), True),
    Label("parking", (250, 170, 160), False),
    Label("rail track", (230, 150, 140), False),
    Label("building", (70, 70, 70), True),
    Label("wall", (102, 102, 156), True),
    Label("fence", (190, 153, 153), True),
    Label("guard rail", (180, 165, 180), False),
    Label("bridge", (150, 100, 100), False),
    Label("tunnel", (150, 120, 90), False),
    Label("pole", (153, 153, 153), True),
    Label("polegroup", (153, 153, 153), False),
    Label("traffic light", (250, 170, 30), True),
    Label("traffic sign", (220, 220, 0), True),
    Label("vegetation", (107, 142, 35), True),
    Label("terrain", (152, 251, 152), True),
    Label("sky", (70, 130, 180), True),
    Label("person", (220, 20, 60), True),
    Label("rider", (255, 0, 0), True),
    Label("car", (0, 0, 142), True),
    Label("truck", (0, 0, 70), True),
    Label("bus", (0, 60, 100), True),
    Label("caravan", (0, 0, 90), False),
    Label("trailer", (0, 0, 110), False),
    Label("train", (0, 80, 100), True),
    Label("motorcycle", (0, 0, 230), True),
    Label("bicycle", (119, 11, 32), True),
)
PLATE = Label("license plate", (0, 0, 142), False)
"""-1 in Cityscapes, where no mask holds it; 34 in GTA5."""

TRAINED = tuple(label for label in LABELS if label.trained)
"""The 19 classes; the place is the class ("train id")."""
TRAIN_IDS = {
    number: TRAINED.index(label) if label.trained else IGNORE_INDEX for number, label in enumerate(LABELS)
}
"""Label number -> class, or 255."""


def street_coding(
    title: str,
    variant: Literal[19, 20, "19+void", "all"],
    *,
    labels: tuple[Label, ...] = LABELS,
    train_ids: bool = False,
) -> KnownCoding:
    """How street scenes are coded.

    Args:
        title: of the masks, for the evidence.
        variant: 19 classes; 20, the last without pixels; 19 and one of everything else; or all labels.
        labels: by number, all of them.
        train_ids: whether the files hold 0..18 and 255 instead of label numbers.
    """
    if variant == "all":
        values = {number: number for number in range(len(labels))} | {IGNORE_INDEX: IGNORE_INDEX}
        kept = labels
    else:
        rest = 19 if variant == "19+void" else IGNORE_INDEX
        # The -1 of Cityscapes' own table is 255 once it is written into 8 bits.
        values = {number: TRAIN_IDS.get(number, IGNORE_INDEX) for number in range(len(labels))}
        if train_ids:
            values = {number: number for number in range(19)}
        values = {number: rest if label == IGNORE_INDEX else label for number, label in values.items()}
        values[IGNORE_INDEX] = rest
        extra = {20: (Label(UNUSED, (255, 255, 255), False),), "19+void": (Label(VOID, (0, 0, 0), False),)}
        kept = (*TRAINED, *extra.get(variant, ()))
    colours: dict[Colour, int] = {}
    for number, label in enumerate(labels):
        # Some labels share a colour; the first one, or the one that is a class, has it.
        own = values[number] if not train_ids else IGNORE_INDEX
        if label.colour not in colours or colours[label.colour] == IGNORE_INDEX:
            colours[label.colour] = own
    return KnownCoding(
        title=title,
        classes=Classes(
            names=tuple(label.name for label in kept), palette=tuple(label.colour for label in kept)
        ),
        values=values,
        colours={} if train_ids else colours,
    )
