"""The training loop, from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric

from segtune.data.loading import train_loader
from segtune.data.prompts import PromptSource
from segtune.data.schedule import derive_seed
from segtune.engine.average import MovingAverage
from segtune.engine.build import learning_rate
from segtune.engine.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from segtune.engine.failures import is_out_of_memory, out_of_memory
from segtune.engine.job import MOST_STEPS, Job
from segtune.engine.kept import delete_others
from segtune.engine.log import MetricLog
from segtune.engine.optim import build_optimizer, rate_factor, set_rate
from segtune.engine.phases import Phases
from segtune.engine.reporter import Reporter
from segtune.engine.resources import ResourceMonitor
from segtune.engine.shards import gathered, load_optimizer
from segtune.engine.step import Stepper
from segtune.engine.tensors import write_tensors
from segtune.engine.tracking import Tracking
from segtune.engine.validation import Validator
from segtune.engine.world import World
from segtune.types import Batch

MAX_STEPS_BETWEEN_CHECKPOINTS = 500
TICKS = 10_000
"""Parts of a budget of seconds that the learning-rate schedule counts."""


class Trainer:
    """Trains a job's model and keeps its best tensors and its last state on disk.

    Args:
        job: everything that was built for the run.
        reporter: hears what happens.
        world: the processes that train together.
        phases: times the parts of steps and validations.
    """

    def __init__(self, job: Job, reporter: Reporter, world: World, phases: Phases) -> None:
        self.job = job
        self.world = world
        self.config = job.config
        self.folder = job.folder
        self.reporter = reporter
        self.progress = Progress()
        self.phases = phases
        self.stepper = Stepper(job, world, phases)
        self.validator = Validator(job, reporter, world, phases)
        self.average: MovingAverage | None = None
        self.resources: dict[str, Any] = {}
        self.tracking: Tracking | None = None
        """Of the first process, from the moment the run begins; to be closed by whoever trains."""

    def run(self, began: float) -> None:
        """Trains from the last checkpoint, or from the start, to the end; nothing where nothing is trained.

        Args:
            began: moment of `time.perf_counter` at which the start-up of this session began.

        Raises:
            TrainingError: the loss is not a number, or memory ran out.
        """
        job = self.job
        applied = job.tunable.applied
        if not applied.parameters():
            self._keep_as_it_is()
            return
        fabric = self.world.fabric
        kept = self._restore()
        self.world.divide(applied)
        optimizer = build_optimizer(
            applied.parameters(),
            self.config.optim,
            learning_rate(self.config, applied),
            applied.rate_factors(),
        )
        if self.config.train.ema is not None:
            self.world.require_whole_tensors("train.ema")
            self.average = MovingAverage(applied.state_dict(), self.config.train.ema)
        if kept is not None:
            load_optimizer(optimizer, kept.optimizer)
            fabric.strategy.precision.load_state_dict(dict(kept.scaler))
            if self.average is not None:
                assert kept.average is not None, "a run is resumed with its own settings"
                self.average.load(kept.average)
        model, optimizer = self.world.set_up(job.tunable.model, optimizer)
        self.world.first(self._start_tracking)
        log = self._open_log()
        self.reporter.training(self.progress.step, None if job.num_steps == MOST_STEPS else job.num_steps)
        spent = self.progress.other_seconds
        spent["start_up"] = spent.get("start_up", 0.0) + time.perf_counter() - began
        try:
            with ResourceMonitor(
                job.device,
                self.progress.peak_process_bytes,
                log=self.folder.resources if self.world.is_first else None,
            ) as monitor:
                self._loop(fabric, model, optimizer, log, monitor)
                self.resources = monitor.snapshot()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise out_of_memory(self.config, job.device, job.crop, job.estimate.total) from error
            raise
        finally:
            if log is not None:
                log.close()

    def _start_tracking(self) -> None:
        self.tracking = Tracking.start(self.config, self.folder, self.progress.step, self.reporter)

    def _open_log(self) -> MetricLog | None:
        """Of the first process."""
        if self.tracking is None:
            return None
        return MetricLog(self.folder, self.progress.log_bytes, self.tracking)

    def _keep_as_it_is(self) -> None:
        """What a run leaves behind where nothing is trained."""
        self.world.first(self._start_tracking)
        log = self._open_log()
        if log is not None:
            log.close()
            write_tensors(self.folder.kept(0), self.job.tunable.applied.state_dict(), {"step": "0"})
        self.progress.kept = [{"step": 0, "score": 0.0}]
        with ResourceMonitor(self.job.device, log=self.folder.resources) as monitor:
            self.resources = monitor.snapshot()

    def _restore(self) -> Checkpoint | None:
        """Progress and trained tensors as they were; returns the rest too."""
        if not self.folder.last.is_file():
            return None
        kept = load_checkpoint(self.folder.last)
        self.progress = kept.progress
        self.job.tunable.applied.load_state_dict(kept.tensors)
        all_steps = "" if self.job.num_steps == MOST_STEPS else f" of {self.job.num_steps}"
        self.reporter.note(f"continuing behind step {self.progress.step}{all_steps}")
        return kept

    def _loop(
        self, fabric: Fabric, model: Any, optimizer: Any, log: MetricLog | None, monitor: ResourceMonitor
    ) -> None:
        config, progress = self.config, self.progress
        peak = learning_rate(config, self.job.tunable.applied)
        batches = self._batches(progress.step, self.job.num_steps - progress.step)
        model.train()
        begin = time.perf_counter()
        while not self._is_over() and not progress.stopped:
            rate = peak * rate_factor(config.optim, *self._place())
            set_rate(optimizer, rate)
            # dropout and the like depend on step and process alone, so that resuming repeats them
            torch.manual_seed(derive_seed("step", config.train.seed, progress.step, *self._rank()))
            loss, wait, num_images = self._step(fabric, model, optimizer, batches)
            if self.average is not None:
                self.average.update(progress.step + 1)
            now = time.perf_counter()
            self.phases.step_done(now - begin)
            progress.step += 1
            progress.images += num_images
            progress.seconds += self._agreed(now - begin)
            progress.wait_seconds += wait
            values = {
                "step": progress.step,
                "epoch": self._epoch(),
                "loss": loss,
                "learning_rate": rate,
                "seconds": now - begin,
                "wait_seconds": wait,
                "images_per_second": num_images / (now - begin),
            }
            if log is not None:
                log.write("train", values)
            self.reporter.step(values)
            if self._epoch_ends(config.train.validate_every):
                with progress.timed("validation"), self.world.whole():
                    self._validate(log, {**monitor.snapshot(), "train_loss": loss})
                model.train()
            if self._checkpoint_due():
                if log is not None:
                    progress.log_bytes = log.num_bytes
                progress.peak_process_bytes = monitor.peak_process_bytes
                with progress.timed("checkpoints"):
                    self._checkpoint(fabric, optimizer)
            begin = time.perf_counter()

    def _rank(self) -> tuple[int, ...]:
        """What tells the random numbers of this process from those of the first one."""
        return () if self.world.is_first else (self.world.rank,)

    def _agreed(self, seconds: float) -> float:
        """Seconds that all processes count alike, where they decide when to stop."""
        if self.config.train.seconds is None:
            return seconds
        return self.world.mean(torch.tensor(seconds, device=self.job.device)).item()

    def _is_over(self) -> bool:
        """Whether the steps or the seconds of the run are used up."""
        seconds = self.config.train.seconds
        return self.progress.step >= self.job.num_steps or (
            seconds is not None and self.progress.seconds >= seconds
        )

    def _place(self) -> tuple[int, int]:
        """Steps done and steps of the whole run; with a budget of seconds, both as parts of it."""
        step, num_steps, seconds = self.progress.step, self.job.num_steps, self.config.train.seconds
        if seconds is None or step * seconds > self.progress.seconds * num_steps:
            return step, num_steps
        return min(round(self.progress.seconds / seconds * TICKS), TICKS - 1), TICKS

    def _epoch(self) -> int:
        """The epoch that the last step belongs to, from 1."""
        num_batches = self.progress.step * self.config.train.accumulate
        return (num_batches - 1) // self.job.batches_per_epoch + 1

    def losses_at(self, rates: Sequence[float], first_step: int) -> Iterator[float]:
        """The loss before steps with given learning rates, and after each of them.

        Nothing is written; the model is trained on the way.

        Args:
            rates: one for each step.
            first_step: whose images and random numbers the first one takes.
        """
        applied, fabric = self.job.tunable.applied, self.world.fabric
        optimizer: Any = build_optimizer(
            applied.parameters(), self.config.optim, rates[0], applied.rate_factors()
        )
        model, optimizer = self.world.set_up(self.job.tunable.model, optimizer)
        model.train()
        batches = self._batches(first_step, len(rates) + 1)
        for number, rate in enumerate([*rates, 0.0]):  # a step's loss is that before it
            set_rate(optimizer, rate)
            torch.manual_seed(derive_seed("step", self.config.train.seed, first_step + number))
            yield self._step(fabric, model, optimizer, batches)[0]

    def _batches(self, step: int, num_steps: int) -> Iterator[Batch]:
        config = self.config
        accumulate = config.train.accumulate
        index, prompted = self.job.index, self.job.tunable.model.prompted
        return iter(
            train_loader(
                index,
                config.data,
                batch_size=config.train.num_images,
                seed=config.train.seed,
                start_step=step * accumulate,
                num_steps=num_steps * accumulate,
                crop=self.job.crop,
                prompts=PromptSource(config.data, prompted, index.classes.ignore_index) if prompted else None,
                part=(self.world.rank, self.world.size),
                views=config.train.cache_views if self.job.cache is not None else None,
            )
        )

    def _step(
        self, fabric: Fabric, model: Any, optimizer: Any, batches: Iterator[Batch]
    ) -> tuple[float, float, int]:
        return self.stepper(fabric, model, optimizer, batches, self.progress.step + 1)

    def _epoch_ends(self, every: int) -> bool:
        """Whether the last step was the first one behind so many more epochs, or the last of all."""
        step, accumulate = self.progress.step, self.config.train.accumulate
        batches = self.job.batches_per_epoch * every
        passed = step * accumulate // batches > (step - 1) * accumulate // batches
        return passed or self._is_over()

    def _checkpoint_due(self) -> bool:
        step, every = self.progress.step, self.config.train.checkpoint_every
        is_last = self._is_over() or self.progress.stopped
        if every is not None:
            return step % every == 0 or is_last
        return is_last or self._epoch_ends(1) or step % MAX_STEPS_BETWEEN_CHECKPOINTS == 0

    def _checkpoint(self, fabric: Fabric, optimizer: Any) -> None:
        state = gathered(optimizer.state_dict(), self.world.is_first)
        with self.world.whole():
            if self.world.is_first:
                save_checkpoint(
                    self.folder.last,
                    Checkpoint(
                        progress=self.progress,
                        tensors=self.job.tunable.applied.state_dict(),
                        optimizer=state,
                        scaler=fabric.strategy.precision.state_dict(),
                        average=None if self.average is None else self.average.tensors,
                    ),
                )
                delete_others(self.folder, self.progress)

    def _validate(self, log: MetricLog | None, extra: dict[str, Any]) -> None:
        with nullcontext() if self.average is None else self.average.in_place():
            values = {"step": self.progress.step, "epoch": self._epoch()}
            self.validator.run(self.progress, values, extra, log)
