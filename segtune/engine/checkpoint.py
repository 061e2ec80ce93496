"""The state of a run in the middle, from which it goes on as if nothing had happened.

All randomness is a function of the seed and the step (order, augmentation, dropout), so a checkpoint
needs no generator states: what is trained, the optimiser, and a few numbers.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtune.engine.files import write_bytes
from segtune.errors import SegtuneError


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    """Optimiser steps done."""
    best_score: float | None = None
    best_step: int | None = None
    stale: int = 0
    """Validations since the best one."""
    stopped: bool = False
    """Early stopping has ended the run."""
    kept: list[dict[str, Any]] = field(default_factory=list)
    """Step and score (the larger the better) of the validations whose tensors are kept, the best first."""
    seconds: float = 0.0
    """Wall time of training steps so far, over all sessions of the run."""
    other_seconds: dict[str, float] = field(default_factory=dict)
    """Wall time beside them: "start_up", "validation", "checkpoints"."""
    wait_seconds: float = 0.0
    """Of which the step waited for data."""
    images: int = 0
    log_bytes: int = 0
    """Length of metrics.jsonl at this moment."""
    peak_process_bytes: int = 0
    validations: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Counts what is done inside among the `other_seconds`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.other_seconds[name] = self.other_seconds.get(name, 0.0) + time.perf_counter() - begin


@dataclass(kw_only=True)
class Checkpoint:
    """What a checkpoint holds."""

    progress: Progress
    tensors: Mapping[str, Tensor]
    """What is trained, and buffers that move with it."""
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    """Of half precision."""
    average: Mapping[str, Tensor] | None = None
    """The moving average of the tensors, where one is kept."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(
        {
            "progress": asdict(checkpoint.progress),
            "tensors": dict(checkpoint.tensors),
            "optimizer": dict(checkpoint.optimizer),
            "scaler": dict(checkpoint.scaler),
            "average": None if checkpoint.average is None else dict(checkpoint.average),
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint; never runs code from the file.

    Raises:
        SegtuneError: the file is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return Checkpoint(**{**state, "progress": Progress(**state["progress"])})
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.PickleError) as error:
        raise SegtuneError(
            f"the checkpoint {path} cannot be read: {error}", hint="start the run anew in another folder"
        ) from None
