"""What the values of volume masks mean: classes, any tumour, or nested regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from segtune.data.base import Classes
from segtune.data.palette import default_palette
from segtune.data.settings import DataSettings
from segtune.errors import DataError, SettingsError
from segtune.types import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a format knows of its mask values."""

    names: Mapping[int, str] | None = None
    """Value -> name of every value, the background included; None: those that the masks hold."""
    known: Mapping[int, str] = field(default_factory=dict)
    """Value -> name of values that may be there."""
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Nested regions, from the largest to the smallest: name -> values that make it up."""
    always_regions: bool = False
    """Whether the data has no other classes than the regions."""
    ignored: int | None = None
    """Value that counts for nothing."""


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """Classes as a run uses them."""

    classes: Classes
    classes_of: Mapping[int, int]
    """Value in the files -> class or the ignore index."""
    values: tuple[int, ...]
    """K values that predictions are written with."""
    regions: Mapping[str, tuple[int, ...]]
    """What is scored: name -> classes that make it up."""
    evidence: str


def choose_labels(labels: Labels, present: Sequence[int], settings: DataSettings) -> LabelSet:
    """The classes that mask values stand for, as the settings ask for them.

    Args:
        labels: what the format knows.
        present: every value in the masks.
        settings: `data.volume.labels`, `data.values`, `data.classes`, `data.ignore_index`.

    Raises:
        SettingsError: regions are asked for where the format knows none.
        DataError: the number of class names does not fit, or nothing but background is there.
    """
    kind = settings.volume.labels
    ignored = dict.fromkeys((settings.ignore_index, IGNORE_INDEX), IGNORE_INDEX)
    if labels.ignored is not None:
        ignored[labels.ignored] = IGNORE_INDEX
    found = set(labels.names or {0, *present}) - ignored.keys()
    if settings.values is not None:
        return _label_set({**settings.values}, ignored, (), settings, "mask values as stated (data.values)")
    if len(found) < 2 and not labels.regions:
        raise DataError("the masks hold nothing but background", hint="check that these are the masks")
    if kind == "tumour":
        members = next(iter(labels.regions.values()), found - {0})
        mapping = {**dict.fromkeys(found, 0), **dict.fromkeys(members, 1)}
        reason = f"any tumour: mask values {_listed(members)}"
        return _label_set(mapping, ignored, ("background", "tumour"), settings, reason)
    if kind == "regions" and not labels.regions:
        raise SettingsError(
            ["data.volume.labels = 'regions': this data names no regions; use classes or tumour"]
        )
    if kind == "regions" or labels.always_regions:
        return _nested(labels, found, ignored, settings)
    values = sorted(found)
    known = labels.names or labels.known
    found_names = tuple(known.get(v, "background" if v == 0 else f"class_{v}") for v in values)
    names = settings.classes or found_names
    mapping = {value: label for label, value in enumerate(values)}
    return _label_set(mapping, ignored, names, settings, f"mask values {_listed(values)}: {', '.join(names)}")


def _nested(labels: Labels, found: set[int], ignored: Mapping[int, int], settings: DataSettings) -> LabelSet:
    mapping = dict.fromkeys(found, 0)
    for label, members in enumerate(labels.regions.values(), start=1):
        # A smaller region lies in the larger ones: its voxels belong to the last that holds them.
        mapping |= dict.fromkeys(members, label)
    *larger, smallest = labels.regions
    names = ("background", *(f"{name} only" for name in larger), smallest)
    reason = "nested regions: " + ", ".join(
        f"{name} ({_listed(members)})" for name, members in labels.regions.items()
    )
    regions = {
        name: tuple(sorted({mapping[value] for value in members})) for name, members in labels.regions.items()
    }
    return replace(_label_set(mapping, ignored, names, settings, reason), regions=regions)


def _label_set(
    mapping: Mapping[int, int],
    ignored: Mapping[int, int],
    names: Sequence[str],
    settings: DataSettings,
    evidence: str,
) -> LabelSet:
    count = max([1, *(label for label in mapping.values() if label != IGNORE_INDEX)]) + 1
    numbered = ["background", *(f"class_{label}" for label in range(1, count))]
    names = settings.classes or names or numbered
    if len(names) != count:
        raise DataError(
            f"{len(names)} class names ({', '.join(names)}) for {count} classes in the masks",
            hint="name every class of the masks in data.classes, the background first",
        )
    written = []
    for label in range(count):
        sources = [value for value, target in mapping.items() if target == label]
        written.append(sources[0] if len(sources) == 1 else label)
    # Several values in one class cannot be told apart again: then the classes' numbers are written.
    values = written if len(set(written)) == count else list(range(count))
    return LabelSet(
        classes=Classes(names=tuple(names), palette=default_palette(count)),
        classes_of={**ignored, **mapping},
        values=tuple(values),
        regions={name: (label,) for label, name in enumerate(names) if label > 0},
        evidence=evidence,
    )


def _listed(values: Sequence[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(values)))
