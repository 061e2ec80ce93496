"""Names for the parts of a training step and of a validation, so that a profile can time them.

`segtune.engine.profile` has the phases that do; without a profile they are these, which do nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

NOTHING: AbstractContextManager[None] = nullcontext()


class Phases:
    """The parts of a run, which nobody times."""

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """What is done inside is the part of that name; a part inside it does not count to it."""
        return NOTHING

    def step_done(self, seconds: float) -> None:
        """A training step has ended, which took so long."""
