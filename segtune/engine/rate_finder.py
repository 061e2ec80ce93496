"""The learning-rate finder: the loss while the rate rises from step to step, and what it suggests.

The rate grows by the same factor at each step; the loss falls, then rises. Source: Smith, Cyclical learning
rates for training neural networks, 2017 (section 3.3). Each step sees other images, so that single losses are
noisy: the ramp is repeated with other images, and the curve is their mean within a window of rates.

The rule: a tenth of the rate at which the curve is lowest, rounded to two digits. There the loss falls
steadily, and a factor of ten is left to the rate that no longer helps. No rate is suggested where the curve
falls by less than twice the standard error of its points, or is lowest at an end of the range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from segtune.config.run import RunConfig
from segtune.data.check_report import CheckReport
from segtune.engine.folder import RunFolder
from segtune.engine.intake import take_in
from segtune.engine.job import Job, prepare
from segtune.engine.phases import Phases
from segtune.engine.reporter import Reporter
from segtune.engine.train import Trainer
from segtune.engine.world import join_world
from segtune.errors import TrainingError, UsageError

WINDOW = 0.12
"""Share of the steps that a point of the curve is the mean of."""
SHARE_OF_LOWEST = 0.1
"""Of the rate at which the curve is lowest: what is suggested."""
ERRORS = 2.0
"""Standard errors by which the curve must fall."""


@dataclass(frozen=True, kw_only=True)
class RateCurve:
    """What the finder saw."""

    rates: list[float]
    losses: list[list[float]]
    """Of each ramp: the loss after the step with each rate, as far as it came."""
    curve: list[float]
    """Mean over ramps and neighbouring rates, as far as every ramp came."""
    standard_error: float
    """Of a point of the curve: what different images make of it."""
    start: float
    """Mean loss before the first step."""
    diverged: float | None
    """Lowest rate at which a ramp was ended because its loss had risen too far."""
    suggestion: float | None
    reason: str
    """Why this rate, or why none."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(self.__dict__)


def find_rate(
    config: RunConfig,
    *,
    steps: int = 100,
    repeats: int = 2,
    low: float = 1e-6,
    high: float = 1.0,
    reporter: Reporter | None = None,
    check: CheckReport | None = None,
) -> RateCurve:
    """Trains a run's model with rising learning rates, and forgets it; nothing is written.

    Args:
        config: the complete settings of the run that the rate is for.
        steps: of each ramp, at least 10.
        repeats: ramps, each from the same tensors with other images.
        low: first rate.
        high: last rate, above `low`.
        reporter: hears what happens.
        check: what `take_in` found, where it was done already.

    Raises:
        UsageError: several processes, nothing that is trained, or a range that is none.
        DataError: the data has errors.
    """
    if config.train.devices * config.train.num_nodes > 1:
        raise UsageError("the learning-rate finder is one process", hint="--set train.devices=1")
    if not 0 < low < high or steps < 10 or repeats < 1:
        raise UsageError(
            f"rates from {low:g} to {high:g} in {steps} steps, {repeats} times, are no ramp",
            hint="0 < --low < --high, --steps of 10 or more, --repeats of 1 or more",
        )
    reporter = reporter or Reporter()
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    # a cache of activations would be written to disk
    train = config.train.model_copy(update={"cache": "off", "cache_views": None})
    config = replace(config, train=train)
    job = prepare(config, RunFolder(Path("no-run")), check or take_in(config, reporter))
    if not job.tunable.applied.parameters():
        raise UsageError(f"{config.method} trains nothing", hint="it needs no learning rate")
    rates = [low * (high / low) ** (number / (steps - 1)) for number in range(steps)]
    trainer = Trainer(job, reporter, join_world(config), Phases())
    own = {name: tensor.clone() for name, tensor in job.tunable.applied.state_dict().items()}
    starts, losses = [], []
    reporter.training(0, steps * repeats)
    for number in range(repeats):
        job.tunable.applied.load_state_dict(own)
        start, *ramp = _ramp(trainer, job, rates, number, reporter)
        starts.append(start)
        losses.append(ramp)
    reporter.close()
    return judge(rates, losses, starts)


def _ramp(
    trainer: Trainer, job: Job, rates: Sequence[float], number: int, reporter: Reporter
) -> Iterator[float]:
    """The loss before the first step, then that after each step, until it has risen too far."""
    lowest, smooth, first = math.inf, None, None
    done = 0
    try:
        for loss in trainer.losses_at(rates, first_step=number * (len(rates) + 1)):
            yield loss
            first = loss if first is None else first
            smooth = loss if smooth is None else 0.8 * smooth + 0.2 * loss
            lowest = min(lowest, smooth)
            done += 1
            values = {"step": number * len(rates) + done, "epoch": 1, "loss": loss}
            reporter.step({**values, "images_per_second": 0.0})
            if smooth > lowest + abs(first):  # as far above its lowest as the loss was at the start
                return
    except TrainingError as error:  # not a number
        if not done:
            raise
        reporter.note(f"ramp {number + 1} ended: {error.message}")


def judge(rates: Sequence[float], losses: Sequence[Sequence[float]], starts: Sequence[float]) -> RateCurve:
    """Applies the rule to losses.

    Args:
        rates: rising.
        losses: of each ramp after the step with each rate; ramps may have ended early.
        starts: loss of each ramp before its first step.
    """
    length = min(map(len, losses))
    half = max(1, round(len(rates) * WINDOW / 2))
    means = [sum(ramp[place] for ramp in losses) / len(losses) for place in range(length)]
    curve = [_mean(means[max(0, place - half) : place + half + 1]) for place in range(length)]
    # neighbours differ by the images that they saw: twice the variance of one loss
    squares = [(b - a) ** 2 / 2 for ramp in losses for a, b in pairwise(ramp[:length])]
    error = math.sqrt(_median(squares) / 0.455 / ((2 * half + 1) * len(losses))) if squares else 0.0
    diverged = rates[length] if length < len(rates) else None
    lowest = min(range(length), key=curve.__getitem__) if length else 0
    start = _mean(starts)
    suggestion, reason = None, ""
    if length <= 2 * half:
        reason = "the loss rose at once: begin lower (--low)"
    elif curve[0] - curve[lowest] < ERRORS * error:
        reason = (
            f"the loss falls by {curve[0] - curve[lowest]:.3g}, which its noise (standard error {error:.2g})"
            " can do alone: more --steps or --repeats, a larger train.batch_size, or a higher --high"
        )
    elif lowest >= length - 1 - half and diverged is None:
        reason = f"the loss still falls at {rates[-1]:.2g}: a higher --high"
    else:
        suggestion = float(f"{SHARE_OF_LOWEST * rates[lowest]:.1e}")
        reason = (
            f"a tenth of {rates[lowest]:.2g}, where the loss is lowest ({curve[lowest]:.4f}, from {start:.4f}"
            f" at the start; standard error {error:.2g})"
        )
        if suggestion < rates[0]:
            reason += "; below the range that was tried"
    return RateCurve(
        rates=list(rates),
        losses=[list(ramp) for ramp in losses],
        curve=curve,
        standard_error=error,
        start=start,
        diverged=diverged,
        suggestion=suggestion,
        reason=reason,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
