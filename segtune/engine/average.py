"""Averages of trained tensors: over the steps of a run, and over its best checkpoints.

Source: Polyak & Juditsky, Acceleration of stochastic approximation by averaging, 1992 (over steps); Izmailov
et al., Averaging weights leads to wider optima and better generalization, 2018 (over checkpoints, and
running statistics measured anew for the averaged weights).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from segtune.methods.attach import has_statistics


class MovingAverage:
    """An exponential moving average of tensors that are being trained.

    Args:
        tensors: those of the model, by name; floating ones are averaged, others copied.
        decay: of the average at each step, below 1. In the first steps it is smaller, (1 + n) / (10 + n) at
            step n, so that the random start is forgotten within a few steps.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self._live = dict(tensors)
        self._decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        """The averages by name."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the tensors as they are after a step, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, live in self._live.items():
            average = self.tensors[name]
            if average.is_floating_point():
                average.lerp_(live, 1 - decay)
            else:
                average.copy_(live)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from averages that were kept."""
        for name, average in self.tensors.items():
            average.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the averages inside, and goes on with its own tensors behind it."""
        own = {name: live.detach().clone() for name, live in self._live.items()}
        try:
            self._put(self.tensors)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, live in self._live.items():
            live.copy_(tensors[name])


def average_tensors(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor over several states, the best one first.

    Args:
        states: at least one; of the same names and shapes.

    Returns:
        Summed in float64 and rounded once to the tensor's own type, so that equal states average to
        themselves; tensors that hold no fractions (counts, indices) are those of the first state.
    """
    first = states[0]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }


def moving_norms(model: nn.Module) -> list[nn.Module]:
    """The norms whose running statistics move in training; found by putting the model into that mode."""
    model.train()
    norms = [module for module in model.modules() if has_statistics(module) and module.training]
    model.eval()
    return norms


@torch.no_grad()
def refresh_statistics(model: nn.Module, norms: Sequence[nn.Module], outputs: Iterable[object]) -> None:
    """Measures running statistics anew: averaged weights have statistics of their own.

    Args:
        model: left in eval mode; nothing but these norms trains meanwhile, dropout is off.
        norms: with running statistics; each gets the plain mean over batches.
        outputs: runs the model on one batch after the other.
    """
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()  # type: ignore[operator]
        norm.momentum = None  # type: ignore[assignment]
        norm.train()
    try:
        for _ in outputs:
            pass
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
