"""Which samples make which batch, for every step of a run, and the seeds of their random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

Key = tuple[int, int]
"""Epoch and index of a training sample."""


def derive_seed(*parts: int | str) -> int:
    """A seed that differs wherever any of the parts differs.

    Args:
        parts: what the random numbers may depend on.

    Returns:
        Integer in 0..2**32-1, the range that PyTorch's generator on the CPU tells apart.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Batches in an epoch: the last, incomplete one counts only where it is the only one."""
    return max(num_samples // batch_size, 1)


class BatchSchedule(Sampler[list[Key]]):
    """Which samples make which batch, for every step of a run.

    Samples are shuffled anew in each epoch. The last, incomplete batch of an epoch is dropped unless it
    is the only one.

    Args:
        num_samples: size of the training set.
        batch_size: samples in a batch.
        seed: of the run.
        start_step: the first step to yield, counted from the start of the run.
        num_steps: how many steps to yield.
        part: number of this process and of all; each has its own samples of every batch.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        num_steps: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.part = part
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.num_steps = num_steps

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return steps_per_epoch(self.num_samples, self.batch_size)

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[list[Key]]:
        order: list[int] = []
        for step in range(self.start_step, self.start_step + self.num_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if batch == 0 or not order:
                order = self._order(epoch)
            first = batch * self.batch_size
            number, size = self.part
            positions = order[first : first + self.batch_size][number::size]
            yield [(epoch, position) for position in positions]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        order: list[int] = torch.randperm(self.num_samples, generator=generator).tolist()
        return order
