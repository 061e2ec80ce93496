"""Masks whose coding and classes a published format fixes, so that none has to be opened to know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segtune.data.base import Classes, Colour
from segtune.data.coding import MAX_CLASSES, Understanding
from segtune.data.description import Description
from segtune.data.masks import MaskCoding
from segtune.data.palette import default_palette
from segtune.data.settings import DataSettings
from segtune.errors import UsageError
from segtune.types import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class KnownCoding:
    """What the masks of a format mean."""

    title: str
    """The coding in a few words, for the evidence."""
    classes: Classes
    values: Mapping[int, int] = field(default_factory=dict)
    """Value in the file -> class or 255."""
    colours: Mapping[Colour, int] = field(default_factory=dict)
    """Colour -> class or 255, for files in true colour."""

    @property
    def coding(self) -> MaskCoding:
        """What decodes the files."""
        return MaskCoding(
            coding="index" if self.values else "rgb", values=dict(self.values), colours=dict(self.colours)
        )


def restate(known: KnownCoding, settings: DataSettings, description: Description) -> Understanding:
    """The known coding with what the user states instead of it.

    Args:
        known: what the format says.
        settings: names of classes, values and the ignored value may be stated.
        description: for its colours.

    Raises:
        UsageError: what is stated does not fit the format.
    """
    text, classes = known.title, known.classes
    values, colours = dict(known.values), dict(known.colours)
    if settings.values is not None:
        values, colours = dict(settings.values), {}
        classes = _mapped_classes(values, settings)
        text += ", values mapped as stated"
    if settings.ignore_index != IGNORE_INDEX:
        values[settings.ignore_index] = IGNORE_INDEX
        text += f", {settings.ignore_index} ignored as stated"
    classes = restate_classes(known.title, classes, settings, description)
    return Understanding(
        coding=MaskCoding(coding="index" if values else "rgb", values=values, colours=colours),
        classes=classes,
        evidence=(f"{text}: {classes.num_classes} classes, fixed by the format",),
    )


def restate_classes(
    title: str, classes: Classes, settings: DataSettings, description: Description
) -> Classes:
    """The classes of a format with the names and colours that the user states.

    Raises:
        UsageError: another number of names, or a coding is stated.
    """
    for key, value in (("masks", settings.masks != "auto"), ("threshold", settings.threshold is not None)):
        if value:
            raise UsageError(
                f"data.{key} is stated, but {title} are coded in one way only",
                hint="leave it out; data.format=folder reads images and masks without knowing the format",
            )
    names, palette = classes.names, classes.palette
    if settings.classes is not None:
        if len(settings.classes) != len(names):
            raise UsageError(
                f"{len(settings.classes)} classes are named, but {title} have {len(names)}",
                hint=f"they are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
            )
        names = tuple(settings.classes)
    if description.colours is not None and len(description.colours) == len(names):
        palette = description.colours
    return Classes(names=names, palette=palette)


def _mapped_classes(values: Mapping[int, int], settings: DataSettings) -> Classes:
    """The classes that stated values lead to."""
    labels = [label for label in values.values() if label != IGNORE_INDEX]
    num_classes = len(settings.classes) if settings.classes else max(max(labels, default=0) + 1, 2)
    if any(not 0 <= label < min(num_classes, MAX_CLASSES) for label in labels):
        raise UsageError(
            "data.values maps to what is no class",
            hint=f"classes are 0..{min(num_classes, MAX_CLASSES) - 1}, and {IGNORE_INDEX} is ignored",
        )
    wrong = [value for value in values if not 0 <= value <= 65535]
    if wrong:
        raise UsageError(f"data.values: {wrong[0]} is no mask value", hint="mask values are 0..65535")
    return Classes(
        names=tuple(f"class_{label}" for label in range(num_classes)), palette=default_palette(num_classes)
    )
