"""TensorBoard: event files in the run's own folder, read by `tensorboard --logdir RUN/tensorboard`.

Needs no account and no server; every step is written. A run that is resumed hides the steps that are done
again.
"""

from __future__ import annotations

from collections.abc import Mapping

from tensorboardX import SummaryWriter

from segtune.trackers.base import TrackedRun, Tracker, flatten


class TensorBoard(Tracker):
    """Writes event files."""

    package = "tensorboardX"
    hint = "check that the run's folder can be written"
    interval = 0.0

    def __init__(self, run: TrackedRun) -> None:
        self._events = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.first_step or None)
        if not run.first_step:
            settings = flatten(run.config)
            self._events.add_text("config", "\n".join(f"    {key}: {settings[key]}" for key in settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds scalars."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        """Closes the file."""
        self._events.close()
