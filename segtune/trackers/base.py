"""What a tracker is: it hands the numbers of a run to another tool as they come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker learns of a run before its first number."""

    name: str
    project: str
    """What the run is filed under."""
    folder: Path
    """The run's, absolute."""
    config: dict[str, Any] = field(default_factory=dict)
    """All settings, nested, plain values."""
    first_step: int = 0
    """Steps that were done before: of a run that is resumed."""
    identifier: str | None = None
    """What the tracker called the run when it was begun, where it is resumed."""


class Tracker(ABC):
    """One tool that follows one run.

    A tracker's file documents itself: where the tool keeps the numbers, and how it is used without an
    account. Whatever it raises in the middle of a run is caught, and the tracker is left out from then on.

    Args:
        run: what there is to know at the start.

    Raises:
        ModuleNotFoundError: the tool's package is not installed.
    """

    package: ClassVar[str]
    """The tool's package, which is also the name of the extra that installs it."""
    hint: ClassVar[str]
    """What to do where it does not start."""
    interval: ClassVar[float] = 1.0
    """Seconds that lie at least between the numbers of two training steps."""

    identifier: str | None = None
    """What the tool calls the run, for resuming."""

    @abstractmethod
    def __init__(self, run: TrackedRun) -> None: ...

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes numbers by name, e.g. "train/loss" and "val/iou/road", of a step counted from 1."""

    def finish(self, values: Mapping[str, float], step: int) -> None:
        """Takes the scores and costs of the run's end, e.g. "result/test/miou"."""
        self.log(values, step)

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Ends the run, however it ended."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
