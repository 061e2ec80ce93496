"""Panels of the best, the median and the worst images: what the scores look like."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segtune.config.run import RunConfig
from segtune.data.base import Classes, DataIndex, Sample
from segtune.data.open import open_data
from segtune.data.preview import overlay
from segtune.data.prompts import PromptSource
from segtune.data.settings import DataSettings
from segtune.data.transforms import to_tensor
from segtune.engine.build import build_tunable, choose_device, place
from segtune.engine.infer import Inference, InferenceSettings
from segtune.engine.predict import display
from segtune.engine.run import load_run
from segtune.methods import METHODS
from segtune.report.panel import Picture, draw_panel
from segtune.report.records import RunRecord
from segtune.types import IGNORE_INDEX

WRONG = (213, 94, 0)
"""Of wrong pixels in an error map, on a pale image."""

Classification = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One chosen image."""

    kind: str
    """"best", "median" or "worst"."""
    name: str
    score: float
    """Its mean IoU, averaged over the runs."""
    sheet: PillowImage.Image


def choose_cases(runs: Sequence[RunRecord]) -> list[tuple[str, str, float]]:
    """Kind, name and score of the best, the median and the worst image by the mean over runs.

    Only images that every run has scored are looked at.
    """
    tables = [run.evaluation.get("per_image") or {} for run in runs]
    names = set.intersection(*(set(table) for table in tables)) if tables else set()
    means = {
        name: statistics.mean(table[name] for table in tables)
        for name in sorted(names)
        if all(table[name] is not None for table in tables)
    }
    ordered = sorted(means, key=lambda name: -means[name])
    if not ordered:
        return []
    chosen = {"best": ordered[0], "median": ordered[len(ordered) // 2], "worst": ordered[-1]}
    return [(kind, name, means[name]) for kind, name in chosen.items()]


def draw_cases(runs: Sequence[RunRecord]) -> list[Case]:
    """Draws the chosen images with ground truth, the base's answer, and each run's with its errors.

    The base is shown where its weights have a classifier for these classes; a new, random one says nothing.

    Args:
        runs: of one data set, with equal classes.

    Returns:
        A sheet for each case; empty where no image was scored by all.

    Raises:
        SegtuneError: the data or the weights are no longer where they were.
    """
    chosen = choose_cases(runs)
    if not chosen:
        return []
    config = runs[0].folder.read_config()
    assert config.data_path is not None
    index = open_data(config.data_path, config.data)
    wanted = [_picture_of(index, name) for _, name, _ in chosen]
    pictures = [[display(index.reader.image(s)), _shown(index, s, index.reader.mask(s))] for s in wanted]
    errors = [[np.full_like(picture, 255) for picture in row] for row in pictures]
    columns = ["image", "ground truth"]
    for label, inference in _answerers(runs, config, index.classes):
        columns.append(label)
        for row, wrong, sample in zip(pictures, errors, wanted, strict=True):
            predicted = _predict(inference, index, sample, config.data)
            row.append(_shown(index, sample, predicted))
            wrong.append(_errors(row[0], predicted, index, sample))
    legend = [*zip(index.classes.names, index.classes.palette, strict=True), ("wrong (below)", WRONG)]
    return [
        Case(kind=kind, name=name, score=score, sheet=draw_panel(columns, [row, wrong], legend=legend))
        for (kind, name, score), row, wrong in zip(chosen, pictures, errors, strict=True)
    ]


def _picture_of(index: DataIndex, name: str) -> Sample:
    """The image of that name; of a volume the slice with the largest foreground."""
    own = [sample for sample in index.samples if sample.case == name]
    if len(own) == 1:
        return own[0]
    return max(own, key=lambda sample: np.count_nonzero(index.reader.mask(sample) % IGNORE_INDEX))


def _answerers(
    runs: Sequence[RunRecord], config: RunConfig, classes: Classes
) -> Iterator[tuple[str, Inference]]:
    """The base, where it knows these classes, and the runs; one at a time in memory."""
    base = _base(config, classes)
    if base is not None:
        yield "base", base
    del base
    for run in runs:
        loaded = load_run(run.folder.path)
        settings = InferenceSettings.from_dict(dict(loaded.description.inference))
        yield run.label, Inference(loaded.tunable.model, settings)


def _predict(
    inference: Inference, index: DataIndex, sample: Sample, settings: DataSettings
) -> Classification:
    image = to_tensor(index.reader.image(sample))[None]
    prompts = None
    if inference.model.prompted:  # as for the scores
        source = PromptSource(settings, inference.model.prompted, index.classes.ignore_index)
        marked = source.marked(index.reader, sample, index.reader.mask(sample))
        prompts = source.exact(torch.from_numpy(np.ascontiguousarray(marked)))
    predicted: Classification = inference.classes(image, prompts)[0].numpy().astype(np.uint8)
    return predicted


def _shown(index: DataIndex, sample: Sample, classes: Classification) -> Picture:
    return overlay(display(index.reader.image(sample)), classes, index.classes)


def _errors(picture: Picture, predicted: Classification, index: DataIndex, sample: Sample) -> Picture:
    """Wrong pixels on a pale grey image; those that count for nothing stay as they are."""
    mask = index.reader.mask(sample)
    pale = 160 + picture.mean(axis=2, keepdims=True) * (95 / 255)
    drawn = np.repeat(pale, 3, axis=2).astype(np.uint8)
    drawn[(predicted != mask) & (mask != index.classes.ignore_index)] = WRONG
    return drawn


def _base(config: RunConfig, classes: Classes) -> Inference | None:
    """The model before tuning, where it knows these classes."""
    tunable = build_tunable(
        model=config.model,
        model_settings=config.model_settings,
        weights=config.weights,
        num_classes=classes.num_classes,
        method_parts={"head": METHODS.settings("head")()},
        seed=config.train.seed,
    )
    if not tunable.weights.kept_head:
        return None
    device = choose_device("auto")
    return Inference(place(tunable.model, device), InferenceSettings.from_data(config.data, "32"))
