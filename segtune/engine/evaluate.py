"""Scores of a model on a split: whole images, at their original size, one confusion matrix."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from segtune.data.base import DataIndex, Sample
from segtune.data.loading import LoadedSample, collate, eval_loader
from segtune.data.prompts import PromptSource
from segtune.data.settings import DataSettings
from segtune.data.volumes.reader import VolumeReader
from segtune.engine.infer import Inference, most_probable
from segtune.engine.phases import Phases
from segtune.engine.volumes import VolumeScoring, whole_cases
from segtune.engine.world import World
from segtune.errors import DataError, UsageError
from segtune.metrics.miou_per_image import image_scores
from segtune.metrics.per_class import per_class
from segtune.metrics.saliency import SaliencyTally, saliency_scores
from segtune.metrics.scores import compute_scores
from segtune.metrics.tally import Tally
from segtune.types import Batch


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one model on one split."""

    split: str
    num_images: int
    scores: dict[str, float]
    per_class: dict[str, list[float | None]]
    class_names: tuple[str, ...]
    confusion: list[list[int]]
    """[K][K] pixel counts: row = ground truth, column = prediction."""
    per_image: dict[str, float]
    """Mean IoU of each image (of volumes: each case) by name."""
    seconds: float
    tally: Tally = field(repr=False)
    """The counts that the scores were computed from."""
    volumes: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    """Case -> metric -> region -> score, None where the region is in neither mask nor prediction."""
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the counts."""
        return {name: value for name, value in self.__dict__.items() if name != "tally"}


def evaluate_samples(
    inference: Inference,
    index: DataIndex,
    samples: Sequence[Sample],
    settings: DataSettings,
    *,
    split: str,
    batch_size: int = 1,
    saliency: bool = False,
    progress: Callable[[int, int], None] | None = None,
    world: World | None = None,
    phases: Phases | None = None,
) -> Evaluation:
    """Scores a model on samples with ground truth.

    Args:
        inference: the model with its way of being fed.
        index: the data.
        samples: at least one, each with a mask.
        settings: number of worker processes, and how prompts are drawn from masks for a model that
            takes them.
        split: what the samples are called.
        batch_size: images of equal size that enter the model at once; no score depends on it.
        saliency: also score the foreground's probabilities, of two classes.
        progress: called with the number of images done and of all.
        world: processes that share the work; each gets the scores of all.
        phases: times reading, network and metrics.

    Raises:
        DataError: there is no sample.
        UsageError: saliency scores of other than two classes.
    """
    if not samples:
        raise DataError(
            f"there are no {split} images to evaluate on",
            hint="choose another split with --split, or set data.val_fraction / data.test_fraction",
        )
    samples = whole_cases(index, samples)
    classes = index.classes
    if saliency:
        require_two_classes(classes.num_classes)
    start = time.perf_counter()
    own = samples if world is None else world.share(samples, lambda sample: sample.case)
    maps = SaliencyTally(classes.ignore_index)
    tally = Tally(classes.num_classes, classes.ignore_index)
    volumes = VolumeScoring(index, own) if isinstance(index.reader, VolumeReader) else None
    prompted = inference.model.prompted
    prompts = PromptSource(settings, prompted, classes.ignore_index) if prompted else None
    surprise, pixels = 0.0, 0
    done = 0
    phases = phases or Phases()
    # of fewer images than processes, some get none
    loaded = eval_loader(index, own, settings, prompts) if own else ()
    for batch in _timed(_equal_sizes(loaded, batch_size), phases):
        with phases("network"):
            probabilities = inference.probabilities(batch.images, batch.prompts).cpu()
        with phases("metrics"):
            if volumes is not None:
                volumes.add(batch.names, probabilities, tally)
            else:
                predictions = most_probable(probabilities)
                for name, prediction, mask in zip(batch.names, predictions, batch.masks, strict=True):
                    tally.update(prediction, mask, name)
            if saliency:
                for foreground, mask in zip(probabilities[:, 1], batch.masks, strict=True):
                    maps.update(foreground, mask)
            more, counted = _surprise(probabilities, batch.masks, classes.ignore_index)
            surprise, pixels = surprise + more, pixels + counted
        done += len(batch.names)
        if progress is not None:
            progress(done, len(own))
    cases = {} if volumes is None else volumes.tally.cases
    if world is not None and world.size > 1:
        parts = world.gather((tally, maps, cases, surprise, pixels))
        tally, maps, cases, surprise, pixels = functools.reduce(_merged, parts)
    scores = compute_scores(tally)
    scores["cross_entropy"] = surprise / pixels if pixels else float("nan")
    if saliency:
        scores.update(saliency_scores(maps))
    if volumes is not None:
        volumes.tally.cases = cases
        scores.update(volumes.tally.scores())
    return Evaluation(
        split=split,
        num_images=len(samples),
        scores=scores,
        per_class=per_class(tally),
        class_names=classes.names,
        confusion=tally.confusion.tolist(),
        per_image=dict(zip(tally.names, image_scores(tally), strict=True)),
        seconds=time.perf_counter() - start,
        tally=tally,
        volumes=cases,
        settings={
            **inference.settings.to_dict(),
            "prompts": None if prompts is None else prompts.describe(),
        },
    )


def _surprise(probabilities: Tensor, masks: Tensor, ignore_index: int) -> tuple[float, int]:
    """Sum of the cross entropy over the pixels that count, and their number."""
    valid = masks != ignore_index
    labels = torch.where(valid, masks, 0).long()
    surprise = -probabilities.gather(1, labels[:, None])[:, 0].clamp_min(1e-12).log()
    # picking out the pixels would take longer than the rest
    return torch.where(valid, surprise, 0.0).sum(dtype=torch.float64).item(), int(valid.sum())


Part = tuple[Tally, SaliencyTally, dict[str, Any], float, int]
"""What one process has counted."""


def _merged(first: Part, second: Part) -> Part:
    first[0].merge(second[0])
    first[1].merge(second[1])
    return first[0], first[1], {**first[2], **second[2]}, first[3] + second[3], first[4] + second[4]


def require_two_classes(num_classes: int) -> None:
    """Raises UsageError where saliency scores are not defined."""
    if num_classes != 2:
        raise UsageError(
            f"saliency scores are of one foreground, and there are {num_classes} classes",
            hint="leave --saliency (train.saliency) out, or map mask values to two classes with data.values",
        )


def _timed(batches: Iterator[Batch], phases: Phases) -> Iterator[Batch]:
    while True:
        with phases("read"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _equal_sizes(loader: Iterable[LoadedSample], batch_size: int) -> Iterator[Batch]:
    """Neighbouring samples of equal size, stacked: padding would change what the network sees."""
    held: list[LoadedSample] = []
    for sample in loader:
        if held and (len(held) == batch_size or held[0].image.shape != sample.image.shape):
            yield collate(held)
            held = []
        held.append(sample)
    if held:
        yield collate(held)
