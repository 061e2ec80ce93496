"""Everything that is built for one run, before its first step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from segtune.config.run import DEFAULT_EPOCHS, RunConfig
from segtune.data.base import DataIndex, Sample
from segtune.data.check_report import CheckReport
from segtune.data.loading import steps_per_epoch
from segtune.data.transforms import resolve_crop
from segtune.engine.build import (
    Tunable,
    build_from_config,
    build_loss,
    choose_device,
    choose_precision,
    place,
)
from segtune.engine.cost import MemoryEstimate, estimate_memory
from segtune.engine.folder import RunFolder
from segtune.engine.infer import InferenceSettings
from segtune.errors import UsageError


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
    steps_per_epoch: int
    num_steps: int

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split that can be scored."""
        return [sample for sample in self.index.split(split) if sample.mask is not None]


def prepare(config: RunConfig, folder: RunFolder, index: DataIndex, check: CheckReport) -> Job:
    """Builds model, method and loss, and works out sizes and steps; writes nothing.

    Args:
        config: the complete settings.
        folder: of the run.
        index: the usable data.
        check: what the data check found.

    Raises:
        UsageError: the model does not take the images' channels.
        WeightsError: the weights are not to be had.
        NoSiteError: the method does not fit the model.
    """
    device = choose_device(config.train.accelerator)
    precision = choose_precision(config.train.precision, device)
    tunable = build_from_config(config, index.classes)
    spec = tunable.model.input_spec
    if spec.channels != index.channels:
        raise UsageError(
            f"the images have {index.channels} channels and {config.model} takes {spec.channels}",
            hint=f"--set model.channels={index.channels} (unet, smp:...), or other images",
        )
    place(tunable.model, device)
    crop = config.data.crop
    if crop == "auto":
        resize = config.data.resize
        crop = resolve_crop(check.image_sizes if resize is None else [resize], spec.multiple)
    estimate = estimate_memory(
        model=config.model,
        model_settings=config.model_settings,
        num_classes=index.classes.num_classes,
        parts=config.method_parts,
        batch_size=config.train.batch_size,
        size=crop or max(check.image_sizes, key=lambda size: size[0] * size[1]),
        precision=precision,
        optimizer=config.optim.name,
    )
    batches = steps_per_epoch(len(index.split("train")), config.train.batch_size)
    steps = max(1, batches // config.train.accumulate)
    return Job(
        config=config,
        folder=folder,
        index=index,
        check=check,
        tunable=tunable,
        loss=build_loss(config, index.classes).to(device),
        device=device,
        precision=precision,
        crop=crop,
        estimate=estimate,
        inference=InferenceSettings.from_data(config.data, precision),
        steps_per_epoch=steps,
        num_steps=config.train.steps or (config.train.epochs or DEFAULT_EPOCHS) * steps,
    )
