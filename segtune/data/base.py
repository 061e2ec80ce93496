"""What a data set is to segtune, whatever its files look like.

A format finds out whether a folder is its own (`detect`, with the evidence) and lists its samples
(`read`). From there on all data looks the same: an image array and a class map for each sample.
Nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segtune.types import IGNORE_INDEX

Image = NDArray[Any]
"""[H, W, C], uint8, uint16 or float32."""
Mask = NDArray[np.uint8]
"""[H, W], class 0..K-1 or the ignore index."""
Colour = tuple[int, int, int]

SPLITS = ("train", "val", "test")


class Severity(StrEnum):
    """Errors stop a run unless overridden by code; warnings are shown and kept in the run."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that the data check has to say."""

    severity: Severity
    code: str
    """Stable, kebab-case name, e.g. "size-mismatch"; `data.allow` takes it."""
    message: str
    files: tuple[str, ...] = ()
    """Paths relative to the data's root."""
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a data set."""

    names: tuple[str, ...]
    """K names; the index is the class."""
    palette: tuple[Colour, ...]
    """K colours, 0..255."""
    ignore_index: int = IGNORE_INDEX

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Where a sample lies, if it is cut out of a volume."""

    case: str
    """The volume's name; a case may consist of several files."""
    position: int
    """Index of the slice."""
    modality: str | None = None
    """The one that the image shows; None where it shows all of them."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with its mask."""

    name: str
    """Unique in the data set; names the outputs made from it."""
    image: Path
    mask: Path | None
    """None where the sample has no ground truth."""
    split: str | None
    """"train", "val", "test", or None where the data says nothing."""
    group: str | None = None
    """Samples of one group (sequence, patient) never fall into different splits."""
    slice: Slice | None = None
    """Where `image` and `mask` are volumes."""
    trained: bool = True
    """Whether training may use it, if it is in the split; scores count it in any case."""

    @property
    def case(self) -> str:
        """What is listed, limited and scored as one: the volume it is cut out of, or the image itself."""
        return self.name if self.slice is None else self.slice.case


@dataclass(frozen=True)
class Origin:
    """All that the arrays of a sample are made of: as long as it is the same, so are they."""

    files: tuple[Path, ...]
    """Files that are read; size and time of change stand for their content."""
    rest: str
    """Everything else: how they are read, and content that lies in no file of the sample's own."""


class Reader(Protocol):
    """Turns a sample's files into arrays.

    Readers whose arrays may be remembered also have `origin(sample) -> Origin | None`, and those of formats
    that tell objects apart `instances(sample)`, [H, W] int32: 1, 2, ... where an object is seen, else 0.
    """

    def image(self, sample: Sample) -> Image:
        """[H, W, C] in the file's own type."""

    def mask(self, sample: Sample) -> Mask:
        """[H, W] class map."""


def origin_of(reader: Reader, sample: Sample) -> Origin | None:
    """What the arrays of a sample are made of, or None where its reader does not say."""
    tell: Callable[[Sample], Origin | None] | None = getattr(reader, "origin", None)
    return None if tell is None else tell(sample)


def tells_instances(reader: Reader) -> bool:
    """Whether a reader can say which pixels belong to one object."""
    return hasattr(reader, "instances")


@dataclass(frozen=True, kw_only=True)
class DataIndex:
    """A data set that was found and understood, before any pixel is used for training."""

    root: Path
    format: str
    samples: tuple[Sample, ...]
    classes: Classes
    reader: Reader
    channels: int = 3
    evidence: tuple[str, ...] = ()
    """Why the data was read in this way, line by line, for the user."""
    findings: tuple[Finding, ...] = ()
    """What was noticed while reading (unmatched files and the like)."""
    expected: tuple[str, ...] = ()
    """Codes of errors that the published files are known to have: warnings here, the samples left out."""
    details: dict[str, Any] = field(default_factory=dict)
    """The format's own decisions, JSON-serialisable, kept with the run."""
    settle: Callable[[DataIndex], DataIndex] | None = None
    """Called once the splits are known, for what may be learned from training samples alone."""

    def split(self, name: str) -> tuple[Sample, ...]:
        """The samples of one split, in a fixed order."""
        return tuple(sample for sample in self.samples if sample.split == name)

    @property
    def training(self) -> tuple[Sample, ...]:
        """The samples that training uses."""
        return tuple(sample for sample in self.split("train") if sample.trained)

    @property
    def split_sizes(self) -> dict[str, int]:
        """Number of samples in each split that has any."""
        counts = Counter(sample.split for sample in self.samples)
        return {name: counts[name] for name in SPLITS if counts[name]}

    def with_samples(self, samples: tuple[Sample, ...]) -> DataIndex:
        """The same data with other samples or splits."""
        return replace(self, samples=samples)
