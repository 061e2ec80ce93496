"""The state of a run in the middle, from which it goes on as if nothing had happened.

All randomness is a function of the seed and the step (order, augmentation, dropout), so a checkpoint
needs no generator states: what is trained, the optimiser, and a few numbers.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
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
    seconds: float = 0.0
    """Wall time of training so far, over all sessions of the run."""
    wait_seconds: float = 0.0
    """Of which the step waited for data."""
    images: int = 0
    log_bytes: int = 0
    """Length of metrics.jsonl at this moment."""
    peak_process_bytes: int = 0
    validations: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    progress: Progress,
    tensors: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    scaler: Mapping[str, Any],
) -> None:
    """Writes a checkpoint, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(
        {
            "progress": asdict(progress),
            "tensors": dict(tensors),
            "optimizer": dict(optimizer),
            "scaler": dict(scaler),
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path) -> tuple[Progress, dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint; never runs code from the file.

    Raises:
        SegtuneError: the file is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return Progress(**state["progress"]), state["tensors"], state["optimizer"], state["scaler"]
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.PickleError) as error:
        raise SegtuneError(
            f"the checkpoint {path} cannot be read: {error}", hint="start the run anew in another folder"
        ) from None
