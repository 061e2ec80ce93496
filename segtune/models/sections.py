"""An encoder as sections that run one behind the other, so that what is frozen need not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Section:
    """A part of an encoder.

    What goes from one section to the next is a tensor, or tuples, lists and dicts of tensors, each with
    the images as its first axis.
    """

    name: str
    """For messages: the module path, where the section is a module."""
    run: Callable[[Any], Any]
    """What the section before gives (the first: normalised, padded images) to what the next one takes."""


class Cut:
    """What the first sections made of a batch of images; a forward goes on from there.

    No dataclass, so that what moves inputs between devices or precisions leaves it alone.

    Args:
        num_sections: how many sections are done.
        state: what the last of them gave.
    """

    def __init__(self, num_sections: int, state: Any) -> None:
        self.num_sections = num_sections
        self.state = state


def run_sections(sections: Iterable[Section], state: Any) -> Any:
    """Runs sections one behind the other."""
    for section in sections:
        state = section.run(state)
    return state
