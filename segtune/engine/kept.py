"""The tensors that a run keeps on disk until it ends: those of its best validations, one or several.

A file belongs to one step and is deleted only once a checkpoint no longer names it. So a run that is killed
between a validation and the next checkpoint finds every file that its checkpoint speaks of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from segtune.data.loading import train_loader
from segtune.data.prompts import PromptSource
from segtune.engine.average import average_tensors, moving_norms, refresh_statistics
from segtune.engine.checkpoint import Progress
from segtune.engine.folder import RunFolder
from segtune.engine.job import Job
from segtune.engine.prompts import to_device
from segtune.engine.tensors import read_tensors
from segtune.engine.world import World
from segtune.types import SegOutput


def rank_validation(progress: Progress, score: float, most: int) -> bool:
    """Takes the last step among the best ones, if it is one of them.

    Args:
        progress: its `kept` holds the best first; the earlier of two equal ones is the better one.
        score: of the last step, the larger the better; -inf where there is no number.
        most: how many are kept.

    Returns:
        Whether the step's tensors are to be kept.
    """
    kept = [*progress.kept, {"step": progress.step, "score": score}]
    kept.sort(key=lambda entry: (-entry["score"], entry["step"]))
    progress.kept = kept[:most]
    return any(entry["step"] == progress.step for entry in progress.kept)


def delete_others(folder: RunFolder, progress: Progress) -> None:
    """Deletes what no longer belongs to the best; to be called when a checkpoint has been written."""
    named = {folder.kept(entry["step"]) for entry in progress.kept}
    for path in folder.last.parent.glob(folder.kept("*").name):
        if path not in named:
            path.unlink()


def load_average(job: Job, world: World, progress: Progress) -> dict[str, Any] | None:
    """Puts the average of the best tensors into the model, with running statistics measured for it.

    Returns:
        The steps and how many batches the statistics were measured on; None, and nothing is done, where the
        settings ask for no average or only one validation has a score.
    """
    steps = averaged_steps(progress)
    if job.config.train.average_best is None or len(steps) == 1:
        return None
    read = [job.folder.kept(step) for step in steps]
    applied = job.tunable.applied
    applied.load_state_dict(world.first(lambda: average_tensors([read_tensors(path) for path in read])))
    norms = moving_norms(job.tunable.model)
    if norms:
        refresh_statistics(job.tunable.model, norms, _outputs(job, world))
        world.copy_first(applied.buffers().values())
    return {"steps": steps, "statistics_batches": job.batches_per_epoch if norms else 0}


def load_step(job: Job, world: World, step: int) -> None:
    """Puts the kept tensors of one step into the model."""
    state: dict[str, Tensor] = world.first(lambda: read_tensors(job.folder.kept(step)))
    job.tunable.applied.load_state_dict(state)


def averaged_steps(progress: Progress) -> list[int]:
    """The steps whose tensors are averaged, the best first; one without a score only if it is alone."""
    scored = [entry["step"] for entry in progress.kept if not math.isinf(entry["score"])]
    return scored or [progress.kept[0]["step"]]


def _outputs(job: Job, world: World) -> Iterator[SegOutput]:
    """The model's outputs for the batches of the run's first epoch, as they were trained on."""
    config, index, prompted = job.config, job.index, job.tunable.model.prompted
    batches = train_loader(
        index,
        config.data,
        batch_size=config.train.num_images,
        seed=config.train.seed,
        start_step=0,
        num_steps=job.batches_per_epoch,
        crop=job.crop,
        prompts=PromptSource(config.data, prompted, index.classes.ignore_index) if prompted else None,
    )
    for batch in batches:
        images = batch.images.to(job.device, memory_format=torch.channels_last)
        with world.fabric.autocast():
            yield job.tunable.model(images, prompts=to_device(batch.prompts, job.device))
