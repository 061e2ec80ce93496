"""Trackio: a local database that `trackio show` draws; with TRACKIO_SPACE_ID a Space of Hugging Face.

Needs no account as long as it is local; TRACKIO_DIR says where the database lies. A run that is resumed
goes on under its name.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout

from segtune.trackers.base import TrackedRun, Tracker


class Trackio(Tracker):
    """One run of Trackio."""

    package = "trackio"
    hint = "without TRACKIO_SPACE_ID it stays on this machine"

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        # a name stands for a run there: folders of one name are told apart by their paths
        digest = hashlib.sha256(str(run.folder).encode()).hexdigest()[:6]
        self.identifier = run.identifier or f"{run.name}-{digest}"
        self._trackio = trackio
        with redirect_stdout(sys.stderr):  # it greets on stdout, where results stand
            self._run = trackio.init(
                project=run.project,
                name=self.identifier,
                config={**run.config, "run_folder": str(run.folder)},
                resume="never" if run.identifier is None else "allow",
                embed=False,
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds a row."""
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the run and waits until everything is written."""
        with redirect_stdout(sys.stderr):
            self._trackio.finish()
