"""Everything that is built for one run, before its first step."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import nn

from segtune.config.run import CROSS_ENTROPY, DEFAULT_EPOCHS, RunConfig, TrainSettings
from segtune.data.base import DataIndex, Sample
from segtune.data.check_report import CheckReport
from segtune.data.schedule import steps_per_epoch
from segtune.data.transforms import TrainTransform, resolve_crop
from segtune.engine.build import (
    Tunable,
    build_from_config,
    build_loss,
    choose_device,
    choose_precision,
    place,
)
from segtune.engine.cost import MemoryEstimate, estimate_memory, program_bytes
from segtune.engine.evaluate import require_two_classes
from segtune.engine.folder import RunFolder
from segtune.engine.infer import InferenceSettings, require_whole_images
from segtune.engine.prefix_cache import PrefixCache
from segtune.engine.prefix_plan import build_cache, plan_cache
from segtune.engine.volumes import recipe_of
from segtune.errors import UsageError
from segtune.metrics import SALIENCY, VOLUME_METRICS
from segtune.metrics.scores import compute_scores
from segtune.metrics.tally import Tally

MOST_STEPS = 10**9
"""Of a run that only its seconds end."""


@dataclass(eq=False, kw_only=True)
class Job:
    """A run's parts, put together."""

    config: RunConfig
    folder: RunFolder
    index: DataIndex
    check: CheckReport
    tunable: Tunable
    loss: nn.Module
    device: torch.device
    precision: str
    crop: tuple[int, int] | None
    """Height, width in pixels of training samples; None: whole images."""
    estimate: MemoryEstimate
    inference: InferenceSettings
    batches_per_epoch: int
    cache: PrefixCache | None
    """Of what the frozen sections give; None without `train.cache`."""
    cache_note: str
    num_steps: int
    """Optimiser steps of the whole run; each takes `train.accumulate` batches."""

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split that can be scored."""
        return [sample for sample in self.index.split(split) if sample.mask is not None]


def prepare(config: RunConfig, folder: RunFolder, check: CheckReport) -> Job:
    """Builds model, method and loss, and works out sizes and steps; writes nothing.

    Args:
        config: the complete settings.
        folder: of the run.
        check: what the data check found.

    Raises:
        UsageError: the model does not take the images' channels or makes nothing that the loss takes, or
            images of different sizes would have to make a batch; windows for a model that is prompted.
        SettingsError: an augmentation does not fit the images, or the loss's settings the classes.
        WeightsError: the weights are not to be had.
        NoSiteError: the method does not fit the model.
    """
    index = check.usable
    device = choose_device(config.train.accelerator)
    precision = choose_precision(config.train.precision, device)
    tunable = build_from_config(config, index.classes)
    spec = tunable.model.input_spec
    if spec.channels != index.channels:
        raise UsageError(
            f"the images have {index.channels} channels and {config.model} takes {spec.channels}",
            hint=f"--set model.channels={index.channels} (unet, smp:...), or choose channels, e.g."
            f" --set data.bands={','.join(map(str, range(spec.channels)))}",
        )
    if config.train.saliency:
        require_two_classes(index.classes.num_classes)
    _check_monitor(config.train.monitor, index)
    _check_validation(config, index)
    loss = build_loss(config, index.classes, tunable.model)
    place(tunable.model, device)
    crop = config.data.crop
    if crop == "auto":
        resize = config.data.resize
        crop = resolve_crop(check.image_sizes if resize is None else [resize], spec.multiple)
    if crop is None and config.train.num_images > 1:
        _check_sizes(config, check.image_sizes)
    num_processes = config.train.devices * config.train.num_nodes
    if num_processes > 1 and len(index.training) < config.train.num_images:
        raise UsageError(
            f"{len(index.training)} images to train on are fewer than train.batch_size="
            f"{config.train.num_images}, which {num_processes} processes divide among them",
            hint="a smaller train.batch_size, or one process",
        )
    # refuses what does not fit the images before anything is written
    TrainTransform(config.data, crop=crop, channels=index.channels, ignore_index=index.classes.ignore_index)
    inference = InferenceSettings.from_data(config.data, precision, recipe_of(index))
    require_whole_images(tunable.model, inference)
    plan = None
    if config.train.cache == "prefix":
        plan = plan_cache(config, tunable, index, check.image_sizes, crop=crop, inference=inference)
    estimate = estimate_memory(
        model=config.model,
        model_settings=config.model_settings,
        num_classes=index.classes.num_classes,
        parts=config.method_parts,
        batch_size=config.train.num_images // num_processes,
        size=crop or config.data.resize or max(check.image_sizes, key=lambda size: size[0] * size[1]),
        precision=precision,
        quantize=config.model_common.quantize,
        optimizer=config.optim.name,
        accumulate=config.train.accumulate,
        loss=loss,
        num_sections=0 if plan is None else plan.prefix.num_sections,
        on_gpu=device.type != "cpu",
    )
    estimate = replace(estimate, program=program_bytes(device, tunable.model))
    batches = steps_per_epoch(len(index.training), config.train.num_images)
    return Job(
        config=config,
        folder=folder,
        index=index,
        check=check,
        tunable=tunable,
        loss=loss.to(device),
        device=device,
        precision=precision,
        crop=crop,
        estimate=estimate,
        inference=inference,
        cache=None if plan is None else build_cache(config, tunable, plan, precision),
        cache_note="" if plan is None else plan.describe(),
        batches_per_epoch=batches,
        num_steps=_num_steps(config.train, batches) if tunable.applied.parameters() else 0,
    )


def _num_steps(train: TrainSettings, batches_per_epoch: int) -> int:
    if train.steps is not None:
        return train.steps
    if train.seconds is not None and train.epochs is None:
        return MOST_STEPS
    return math.ceil((train.epochs or DEFAULT_EPOCHS) * batches_per_epoch / train.accumulate)


def _check_validation(config: RunConfig, index: DataIndex) -> None:
    """Raises UsageError where a setting needs validations and there is nothing to validate on."""
    if any(sample.mask is not None for sample in index.split("val")):
        return
    for name in ("early_stop", "average_best"):
        value = getattr(config.train, name)
        if value is not None:
            all_trained = config.data.train_on == "train+val"
            raise UsageError(
                f"train.{name}={value} needs validations, and there are no validation images"
                + (": data.train_on=train+val trains on them" if all_trained else ""),
                hint="find the number of steps with data.train_on=train, then train so many (train.steps)"
                " without it; train.ema averages without validations"
                if all_trained
                else "data.val_fraction cuts some from the training images",
            )


def _check_monitor(name: str, index: DataIndex) -> None:
    """Raises UsageError where a metric is not defined for the data."""
    classes = index.classes
    if name in VOLUME_METRICS and recipe_of(index) is None:
        raise UsageError(
            f"train.monitor={name} is a score of volumes, and the data has images",
            hint="use miou, or another metric of `segtune list metrics`",
        )
    if name == CROSS_ENTROPY or name in SALIENCY or name in VOLUME_METRICS:
        return
    perfect = Tally(classes.num_classes, classes.ignore_index)
    perfect.update([list(range(classes.num_classes))], [list(range(classes.num_classes))], "perfect")
    if name not in compute_scores(perfect):
        raise UsageError(
            f"train.monitor={name} is not defined for {classes.num_classes} classes",
            hint="use miou, or another metric of `segtune list metrics`",
        )


def _check_sizes(config: RunConfig, sizes: Collection[tuple[int, int]]) -> None:
    """Raises UsageError where whole images of a batch would differ in size."""
    data, batch = config.data, f"data.crop=null with train.batch_size={config.train.num_images}"
    if data.scale[0] != data.scale[1]:
        raise UsageError(
            f"{batch} and data.scale={data.scale[0]:g},{data.scale[1]:g}: images of different sizes cannot"
            " make a batch",
            hint="set data.crop to a size or auto, or data.scale=1,1, or train.batch_size=1",
        )
    if data.resize is None and len(sizes) > 1:
        raise UsageError(
            f"{batch}: images of {len(sizes)} different sizes cannot make a batch",
            hint="set data.crop or data.resize, or train.batch_size=1",
        )
