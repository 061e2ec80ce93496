"""What a run tells while it goes on; the command line draws it, a program may ignore it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Reporter:
    """Hears what happens in a run and says nothing; subclasses show it."""

    def note(self, *lines: str) -> None:
        """Something worth knowing, in words."""

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of texts."""

    def training(self, first_step: int, num_steps: int | None) -> None:
        """Training begins at a step, out of so many."""

    def step(self, values: Mapping[str, Any]) -> None:
        """A step was done: step, loss, images_per_second, ..."""

    def evaluating(self, done: int, total: int) -> None:
        """So many images out of all have been evaluated."""

    def validated(self, values: Mapping[str, Any]) -> None:
        """A validation was done: step, epoch, scores, whether it is the best."""

    def close(self) -> None:
        """The run is over, however it ended."""
