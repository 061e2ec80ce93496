"""The trackers of one run: started together, fed, and left out one by one where they fail."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segtune.config.run import RunConfig
from segtune.engine.files import plain, write_json
from segtune.engine.folder import RunFolder
from segtune.engine.reporter import Reporter
from segtune.errors import MissingExtraError, UsageError
from segtune.trackers import TRACKERS
from segtune.trackers.base import TrackedRun, Tracker


def require_trackers(names: Sequence[str]) -> None:
    """Raises MissingExtraError where the package of a tracker is not installed."""
    for name in names:
        package = TRACKERS.load(name).package
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra=name, purpose=f"train.trackers={name}")


class Tracking:
    """Hands numbers to trackers; a failure of theirs is told once and never ends the run.

    Args:
        trackers: by name.
        reporter: hears of failures.
    """

    def __init__(self, trackers: Mapping[str, Tracker], reporter: Reporter) -> None:
        self._trackers = dict(trackers)
        self._reporter = reporter
        self._logged = dict.fromkeys(trackers, -math.inf)

    @classmethod
    def start(cls, config: RunConfig, folder: RunFolder, first_step: int, reporter: Reporter) -> Tracking:
        """Starts the trackers that a run asks for, or goes on with those of a run that is resumed.

        Args:
            config: the complete settings.
            folder: the run's.
            first_step: steps that were done before.
            reporter: hears of failures.

        Raises:
            UsageError: a tracker does not start; those that did have ended again.
        """
        kept: dict[str, str] = {}
        if first_step and folder.trackers.is_file():
            kept = json.loads(folder.trackers.read_text(encoding="utf-8"))
        trackers: dict[str, Tracker] = {}
        for name in config.train.trackers:
            kind: type[Tracker] = TRACKERS.load(name)
            run = TrackedRun(
                name=folder.path.resolve().name,
                project=config.train.tracker_project,
                folder=folder.path.resolve(),
                config=plain(config.to_dict()),
                first_step=first_step,
                identifier=kept.get(name),
            )
            try:
                trackers[name] = kind(run)
            except Exception as error:  # whatever another tool raises
                cls(trackers, reporter).close(failed=True)
                raise UsageError(
                    f"the tracker {name} does not start: {_told(error)}",
                    hint=f"{kind.hint}; or leave {name} out of train.trackers",
                ) from error
        identifiers = {name: tracker.identifier for name, tracker in trackers.items() if tracker.identifier}
        if identifiers:
            write_json(folder.trackers, identifiers)
        return cls(trackers, reporter)

    def log(self, kind: str, values: Mapping[str, Any]) -> None:
        """Hands on the numbers of a step or a validation; steps that follow too fast are left out.

        Args:
            kind: "train" or "val".
            values: must hold "step".
        """
        numbers = _numbers(values, f"{kind}/", without=("step", "epoch"))
        now = time.monotonic()
        for name, tracker in list(self._trackers.items()):
            if kind == "train":
                if now - self._logged[name] < tracker.interval:
                    continue
                self._logged[name] = now
            self._call(name, lambda own=tracker: own.log(numbers, values["step"]))  # type: ignore[misc]

    def finish(self, result: Mapping[str, Any]) -> None:
        """Hands on the scores and costs of result.json."""
        numbers = _numbers(result, "result/")
        for split in ("val", "test"):
            if result[split] is not None:
                numbers.update(_numbers(result[split]["scores"], f"result/{split}/"))
        for name, tracker in list(self._trackers.items()):
            self._call(name, lambda own=tracker: own.finish(numbers, result["steps"]))  # type: ignore[misc]

    def close(self, *, failed: bool) -> None:
        """Ends all of them."""
        for name, tracker in list(self._trackers.items()):
            self._call(name, lambda own=tracker: own.close(failed=failed))  # type: ignore[misc]
        self._trackers.clear()

    def _call(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # training is worth more than its curves elsewhere
            del self._trackers[name]
            self._reporter.note(
                f"warning: the tracker {name} failed and is left out from here on: {_told(error)};"
                " metrics.jsonl has every number"
            )


def _numbers(values: Mapping[str, Any], prefix: str, without: Sequence[str] = ()) -> dict[str, float]:
    return {
        f"{prefix}{name}": value
        for name, value in values.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and name not in without
    }


def _told(error: Exception) -> str:
    """An error's first line with its kind: what other tools say is often a page."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
