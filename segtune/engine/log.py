"""The metrics of a run as files: JSON lines, CSV and TensorBoard events."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from typing import Any

from tensorboardX import SummaryWriter

from segtune.engine.files import plain, write_text
from segtune.engine.folder import RunFolder


class MetricLog:
    """Appends to `metrics.jsonl`, and keeps the other two in step with it.

    Args:
        folder: the run's.
        start_bytes: what was written behind this position belongs to steps that will be done again.
        start_step: the first step that will be logged.
    """

    def __init__(self, folder: RunFolder, start_bytes: int, start_step: int) -> None:
        self._folder = folder
        self._file = folder.metrics.open("ab")
        self._file.truncate(min(start_bytes, self._file.tell()))
        self._file.seek(0, os.SEEK_END)
        self._events = SummaryWriter(str(folder.events), purge_step=start_step or None)

    @property
    def num_bytes(self) -> int:
        """Length of the file, after everything written has reached the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """One line; numbers also become events.

        Args:
            kind: "train" or "val".
            values: must hold "step".
        """
        line = json.dumps(plain({"kind": kind, **values}))
        self._file.write(line.encode() + b"\n")
        for name, value in values.items():
            if isinstance(value, int | float) and name not in {"step", "epoch"}:
                self._events.add_scalar(f"{kind}/{name}", value, values["step"])

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
        """Closes the files."""
        self._file.close()
        self._events.close()
