"""One optimiser step: batches, forward, loss, backward, clip, update."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from segtune.engine.build import takes_proposals
from segtune.engine.failures import not_a_number
from segtune.engine.job import Job
from segtune.engine.phases import Phases
from segtune.engine.prompts import to_device
from segtune.engine.world import World
from segtune.types import Batch, SegOutput


class Stepper:
    """Does steps of a job.

    Args:
        job: everything that was built for the run.
        world: the processes that train together.
        phases: times the parts of a step.
    """

    def __init__(self, job: Job, world: World, phases: Phases) -> None:
        self.job = job
        self.world = world
        self.phases = phases

    def __call__(
        self, fabric: Fabric, model: Any, optimizer: Any, batches: Iterator[Batch], number: int
    ) -> tuple[float, float, int]:
        """Does one step.

        Args:
            fabric: of the world.
            model: as set up.
            optimizer: as set up.
            batches: as many are taken as one step accumulates.
            number: of the step, from 1; told where the loss is not a number.

        Returns:
            Mean loss before the step, seconds waited for data, number of images.

        Raises:
            TrainingError: the loss or its gradient is not a number.
        """
        accumulate, phases = self.job.config.train.accumulate, self.phases
        total, waited, num_images, names = 0.0, 0.0, 0, list[str]()
        cache = self.job.cache
        for part in range(accumulate):
            begin = time.perf_counter()
            with phases("data wait"):
                batch = next(batches)
            waited += time.perf_counter() - begin
            with phases("host to device"):
                images = batch.images.to(
                    self.job.device, memory_format=torch.channels_last, non_blocking=True
                )
                masks = batch.masks.to(self.job.device, non_blocking=True)
                prompts = to_device(batch.prompts, self.job.device)
            with fabric.no_backward_sync(model, enabled=part < accumulate - 1):
                with phases("forward, the rest"):
                    cut = None if cache is None else cache(batch.images)
                    output: SegOutput = model(images, prompts=prompts, cut=cut)
                names += batch.names
                with phases("loss"):
                    loss = self.total_loss(output, masks)
                    mean = self.world.mean(loss)
                    if not torch.isfinite(mean):  # in any process, so that all of them stop
                        raise not_a_number(mean.item(), names, number, self.job.folder)
                with phases("decoder backward"):
                    fabric.backward(loss / accumulate)
            total += mean.item() / accumulate
            num_images += len(batch.names) * self.world.size
        with phases("optimiser"):
            self._update(fabric, model, optimizer, names, number)
        return total, waited, num_images

    def _update(self, fabric: Fabric, model: Any, optimizer: Any, names: list[str], number: int) -> None:
        """Moves the trained tensors along their gradients."""
        self.world.average_gradients()
        if self.job.config.optim.clip is not None:
            norm = fabric.clip_gradients(
                model, optimizer, max_norm=self.job.config.optim.clip, error_if_nonfinite=False
            )
            # half precision: the scaler skips the step and lowers its scale by itself
            if self.job.precision != "16" and norm is not None and not torch.isfinite(norm):
                raise not_a_number(norm.item(), names, number, self.job.folder)
        optimizer.step()
        optimizer.zero_grad()

    def total_loss(self, output: SegOutput, masks: Tensor) -> Tensor:
        """The loss with those of auxiliary classifiers and of methods."""
        if takes_proposals(self.job.loss):
            assert not output.auxiliary, "a model that proposes masks has no auxiliary logits"
            total: Tensor = self.job.loss(output.proposals, masks)
        else:
            total = self.job.loss(output.logits, masks)
        for logits in output.auxiliary.values():
            total = total + self.job.config.loss_common.auxiliary_weight * self.job.loss(logits, masks)
        for penalty in output.penalties.values():
            total = total + self.job.config.loss_common.penalty_weight * penalty
        return total
