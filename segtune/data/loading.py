"""Batches for training and single images for evaluation.

A training sample is a pure function of (seed, epoch, index): each draws from a generator of its own.
The order of the samples is a pure function of (seed, epoch). So a run that is resumed in the middle
of an epoch sees exactly what it would have seen, with any number of workers, and the random numbers
of the main process (dropout, for one) are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segtune.data.base import DataIndex, Image, Mask, Sample
from segtune.data.decoded import decoded_reader
from segtune.data.prompts import PromptSource, stack_prompts
from segtune.data.schedule import BatchSchedule, Key, derive_seed
from segtune.data.settings import DataSettings, Size
from segtune.data.transforms import TrainTransform, to_tensor
from segtune.errors import DataError, SegtuneError
from segtune.types import Batch, Prompts


class LoadedSample(NamedTuple):
    """One image with its mask, ready for a model."""

    image: Tensor
    """float32 [C, H, W] in [0, 1]."""
    mask: Tensor
    """uint8 [H, W]."""
    name: str
    prompts: Prompts | None = None
    """Of one image (B = 1), for models that are prompted."""


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seeds PyTorch's generator for a while, on one thread."""
    num_threads = torch.get_num_threads()
    # Sums split over threads round differently, and workers have one thread each.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reset the generators of accelerators as well.
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(num_threads)


def _read(index: DataIndex, sample: Sample) -> tuple[Image, Mask]:
    """The arrays of a sample, fit to be trained on."""
    image, mask = index.reader.image(sample), index.reader.mask(sample)
    if image.shape[:2] != mask.shape:
        raise DataError(
            f"{sample.name}: the image is {image.shape[0]}x{image.shape[1]} pixels, "
            f"its mask {sample.mask} {mask.shape[0]}x{mask.shape[1]}",
            hint="`segtune data check` lists every such pair; data.exclude leaves samples out",
        )
    num_classes, ignore_index = index.classes.num_classes, index.classes.ignore_index
    # Found here, with its name: on a GPU such a value would end the process without one.
    wrong = mask[(mask >= num_classes) & (mask != ignore_index)]
    if wrong.size:
        raise DataError(
            f"{sample.mask}: the mask holds the value {wrong[0]}, which is none of the "
            f"{num_classes} classes and not the ignore index {ignore_index}",
            hint="`segtune data check` lists the values; data.values maps them to classes",
        )
    return image, mask


def _require_masks(samples: Sequence[Sample], purpose: str) -> None:
    if not samples:
        raise DataError(
            f"there are no samples for {purpose}",
            hint="`segtune data check` shows the splits and how they were made",
        )
    without = [sample.name for sample in samples if sample.mask is None]
    if without:
        raise DataError(
            f"{len(without)} of {len(samples)} samples for {purpose} have no mask, the first is {without[0]}",
            hint="add the masks, or leave the samples out with data.exclude",
        )


class TrainDataset(Dataset[LoadedSample]):
    """Training samples by (epoch, index).

    Args:
        index: the data.
        samples: those to train on.
        transform: turns arrays into a training sample.
        seed: of the run.
        prompts: draws the prompts of each sample, for models that take them.
        views: augmented views of each sample, those of the first epochs, which repeat; None: ever new.
    """

    def __init__(
        self,
        index: DataIndex,
        samples: Sequence[Sample],
        transform: TrainTransform,
        seed: int,
        prompts: PromptSource | None = None,
        views: int | None = None,
    ) -> None:
        self.index, self.views = index, views
        self.samples = tuple(samples)
        self.transform = transform
        self.seed = seed
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> LoadedSample:
        epoch, position = key
        epoch = epoch % self.views if self.views else epoch
        sample = self.samples[position]
        image, mask = _read(self.index, sample)
        marked = mask if self.prompts is None else self.prompts.marked(self.index.reader, sample, mask)
        with _own_randomness(derive_seed("sample", self.seed, epoch, position)):
            pixels, classes = self.transform(image, marked)
            if self.prompts is None:
                return LoadedSample(pixels, classes, sample.name)
            prompts, classes = self.prompts.draw(classes)
            return LoadedSample(pixels, classes, sample.name, prompts)


class EvalDataset(Dataset[LoadedSample]):
    """Whole images at their own resolution, nothing added.

    Args:
        index: the data.
        samples: those to evaluate on.
        prompts: makes the prompts of each sample, for models that take them.
    """

    def __init__(
        self, index: DataIndex, samples: Sequence[Sample], prompts: PromptSource | None = None
    ) -> None:
        self.index = index
        self.samples = tuple(samples)
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> LoadedSample:
        sample = self.samples[position]
        image, array = _read(self.index, sample)
        mask = torch.from_numpy(np.ascontiguousarray(array))
        prompts = None
        if self.prompts is not None:
            marked = self.prompts.marked(self.index.reader, sample, array)
            prompts = self.prompts.exact(torch.from_numpy(np.ascontiguousarray(marked)))
        return LoadedSample(to_tensor(image), mask, sample.name, prompts)


def collate(samples: Sequence[LoadedSample]) -> Batch:
    """Stacks samples of one size.

    Args:
        samples: at least one.

    Returns:
        The batch, masks as int64.

    Raises:
        DataError: the samples differ in size, which happens only where they are not cropped.
    """
    sizes = {sample.mask.shape: sample.name for sample in samples}
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {height}x{width}" for (height, width), name in sizes.items())
        raise DataError(
            f"images of different sizes cannot be one batch: {listed}",
            hint="set data.crop or data.resize, or train.batch_size=1",
        )
    prompts = [sample.prompts for sample in samples if sample.prompts is not None]
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        masks=torch.stack([sample.mask for sample in samples]).long(),
        names=[sample.name for sample in samples],
        prompts=stack_prompts(prompts) if prompts else None,
    )


class _Deferred(Dataset[LoadedSample | SegtuneError]):
    """Hands out an error in place of the sample: raised in a worker it would lose hint and shape."""

    def __init__(self, dataset: TrainDataset | EvalDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> LoadedSample | SegtuneError:
        try:
            return self.dataset[key]
        except SegtuneError as error:
            return error


def _collate_deferred(samples: list[LoadedSample | SegtuneError]) -> Batch | SegtuneError:
    loaded = []
    for sample in samples:
        if isinstance(sample, SegtuneError):
            return sample
        loaded.append(sample)
    try:
        return collate(loaded)
    except SegtuneError as error:
        return error


def _as_is(sample: Any) -> Any:
    return sample


class _Loader(DataLoader[Any]):
    """A loader whose errors are raised in the main process, as they were."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for item in super().__iter__():
            if isinstance(item, SegtuneError):
                try:
                    raise item
                finally:
                    # The error refers to this frame: a cycle would keep the workers alive until
                    # they are torn down in the wrong order, which takes seconds.
                    del item
            yield item


def train_loader(
    index: DataIndex,
    settings: DataSettings,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    crop: Size | None,
    prompts: PromptSource | None = None,
    part: tuple[int, int] = (0, 1),
    views: int | None = None,
) -> DataLoader[Batch]:
    """Batches of the split "train", from any step of the run on.

    Args:
        index: the data.
        settings: augmentation and workers.
        batch_size: samples in a batch.
        seed: of the run.
        start_step: first step, counted from the start of the run.
        num_steps: number of batches to yield.
        crop: height, width in pixels of every sample; None for whole images.
        prompts: draws the prompts of each sample, for models that take them.
        part: number of this process and of all; each gets its own samples of every batch.
        views: as for `TrainDataset`.

    Returns:
        Yields `num_steps` batches, the same for any number of workers.

    Raises:
        DataError: there is nothing to train on, or a sample has no mask. While iterating: a file
            cannot be read; the message names it.
        SettingsError: an augmentation does not fit the images.
        UsageError: prompts for each instance, and the data tells none apart.
    """
    samples = index.training
    _require_masks(samples, "training")
    if prompts is not None:
        prompts.check(index)
    index = replace(index, reader=decoded_reader(index.reader, settings))
    transform = TrainTransform(
        settings, crop=crop, channels=index.channels, ignore_index=index.classes.ignore_index
    )
    schedule = BatchSchedule(
        len(samples),
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        num_steps=num_steps,
        part=part,
    )
    return _Loader(
        _Deferred(TrainDataset(index, samples, transform, seed, prompts, views)),
        batch_sampler=schedule,
        collate_fn=_collate_deferred,
        num_workers=settings.workers,
        generator=torch.Generator(),  # without one the loader draws from the main generator
    )


def eval_loader(
    index: DataIndex,
    samples: Sequence[Sample],
    settings: DataSettings,
    prompts: PromptSource | None = None,
) -> DataLoader[LoadedSample]:
    """Whole images, one at a time, in the order given.

    Args:
        index: the data.
        samples: those to evaluate on.
        settings: workers.
        prompts: makes the prompts of each sample, for models that take them.

    Returns:
        Yields one `LoadedSample` for each sample.

    Raises:
        DataError: there are no samples, or one has no mask. While iterating: a file cannot be read;
            the message names it.
    """
    _require_masks(samples, "evaluation")
    if prompts is not None:
        prompts.check(index)
    index = replace(index, reader=decoded_reader(index.reader, settings))
    return _Loader(
        _Deferred(EvalDataset(index, samples, prompts)),
        batch_size=None,
        collate_fn=_as_is,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,  # walked once for each evaluation
        generator=torch.Generator(),
    )
