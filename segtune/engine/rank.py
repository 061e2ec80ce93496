"""Which of several processes this is, known before anything heavy is imported."""

from __future__ import annotations

import os

RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
"""Variables in which a process that was started by another one finds its number, the best first."""


def is_first_process() -> bool:
    """Whether this process prints and writes; known before anything is set up."""
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), 0) == 0
