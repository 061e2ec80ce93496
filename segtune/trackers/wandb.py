"""Weights & Biases: curves in its web application, or offline in RUN/wandb.

Without an account set WANDB_MODE=offline; `wandb sync RUN/wandb/offline-run-...` uploads it later, if
wanted. Its other environment variables (WANDB_ENTITY, WANDB_TAGS, WANDB_BASE_URL, ...) hold as well. A run
that is resumed goes on under its identifier.
"""

from __future__ import annotations

from collections.abc import Mapping

from segtune.trackers.base import TrackedRun, Tracker


class Wandb(Tracker):
    """One run of Weights & Biases."""

    package = "wandb"
    hint = "WANDB_MODE=offline keeps the run in its folder, without an account"

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=run.project,
            name=run.name,
            dir=str(run.folder),
            config={**run.config, "run_folder": str(run.folder)},
            id=run.identifier,
            resume=None if run.identifier is None else "allow",
            settings=wandb.Settings(silent=True),
        )
        self.identifier = self._run.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds a row; numbers of one step come together."""
        self._run.log(dict(values), step=step)

    def finish(self, values: Mapping[str, float], step: int) -> None:
        """Writes the summary that its table of runs shows."""
        self._run.summary.update(dict(values))

    def close(self, *, failed: bool) -> None:
        """Ends the run and waits until everything is written."""
        self._run.finish(exit_code=1 if failed else 0)
