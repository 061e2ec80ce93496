"""The metrics of a run as files, JSON lines and CSV, and on their way to trackers."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from typing import Any

from segtune.engine.files import plain, write_text
from segtune.engine.folder import RunFolder
from segtune.engine.tracking import Tracking


class MetricLog:
    """Appends to `metrics.jsonl`, and keeps table and trackers in step with it.

    Args:
        folder: the run's.
        start_bytes: what was written behind this position belongs to steps that will be done again.
        tracking: hears every line too.
    """

    def __init__(self, folder: RunFolder, start_bytes: int, tracking: Tracking) -> None:
        self._folder = folder
        self._tracking = tracking
        self._file = folder.metrics.open("ab")
        self._file.truncate(min(start_bytes, self._file.tell()))
        self._file.seek(0, os.SEEK_END)

    @property
    def num_bytes(self) -> int:
        """Length of the file, after everything written has reached the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """One line; its numbers are also tracked.

        Args:
            kind: "train" or "val".
            values: must hold "step".
        """
        line = json.dumps(plain({"kind": kind, **values}))
        self._file.write(line.encode() + b"\n")
        self._tracking.log(kind, values)

    def write_table(self, validations: list[dict[str, Any]]) -> None:
        """Writes the validations as CSV."""
        if validations:
            text = io.StringIO()
            # a run that went on with a GPU has more columns than it began with
            names = list(dict.fromkeys(name for values in validations for name in values))
            writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(validations)
            write_text(self._folder.table, text.getvalue())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
