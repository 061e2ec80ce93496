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
from segtune.data.preview import BOXED, outline_boxes, overlay
from segtune.data.prompts import PromptSource, known_boxes, stack_prompts
from segtune.data.settings import DataSettings
from segtune.data.transforms import to_tensor
from segtune.data.volumes.reader import VolumeReader
from segtune.engine.build import build_tunable, choose_device, place
from segtune.engine.infer import Inference, InferenceSettings
from segtune.engine.predict import display
from segtune.engine.run import load_run
from segtune.engine.volumes import combine, recipe_of
from segtune.methods import METHODS
from segtune.report.panel import Picture, draw_panel
from segtune.report.records import RunRecord
from segtune.types import IGNORE_INDEX, Prompts

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


@dataclass(frozen=True, kw_only=True)
class View:
    """One image, or one slice of a volume, by all that a model is shown of it."""

    samples: list[Sample]
    """The image, or the slice in each of its separate modalities."""
    names: list[str]
    pictures: list[Picture]
    """What people are shown, with a name for each: the image, or the slice's modalities."""
    mask: Classification


def draw_cases(runs: Sequence[RunRecord]) -> list[Case]:
    """Draws the chosen images with ground truth, the base's answer, and each run's with its errors.

    Of a volume, the slice with the largest foreground is drawn, each modality in a row; below separate
    modalities stands what their predictions are combined to. Boxes are those that the models were given.
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
    views = [_view_of(index, name) for _, name, _ in chosen]
    columns = ["image", "ground truth"]
    sheets: list[list[list[Picture]]] = [_first_columns(view, index.classes) for view in views]
    boxes: list[NDArray[np.float32] | None] = [None for _ in views]
    for label, inference in _answerers(runs, config, index.classes):
        columns.append(label)
        for number, (view, sheet) in enumerate(zip(views, sheets, strict=True)):
            prompts = _prompts_of(inference, view, index, config.data)
            boxes[number] = boxes[number] if prompts is None else known_boxes(prompts)
            parts, whole = _predict(inference, view, index, prompts)
            shown = [*view.pictures, view.pictures[0]] if len(view.samples) > 1 else view.pictures
            answers = [*parts, whole] if len(view.samples) > 1 else [whole] * len(shown)
            for row, picture, answer in zip(sheet, shown, answers, strict=False):
                row.append(overlay(picture, answer, index.classes))
            sheet[-1].append(_errors(view, whole, index.classes))
    legend = [*zip(index.classes.names, index.classes.palette, strict=True), ("wrong (below)", WRONG)]
    if any(found is not None for found in boxes):
        legend.append(("box that was given", BOXED))
    return [
        Case(
            kind=kind,
            name=name,
            score=score,
            sheet=draw_panel(columns, _boxed(sheet, found), legend=legend, row_names=_row_names(view)),
        )
        for (kind, name, score), view, sheet, found in zip(chosen, views, sheets, boxes, strict=True)
    ]


def _view_of(index: DataIndex, name: str) -> View:
    """The image of that name; of a volume the slice with the largest foreground."""
    own = [sample for sample in index.samples if sample.case == name]
    if own[0].slice is None:
        return _view(index, own[:1], [""], [display(index.reader.image(own[0]))])
    first = [sample for sample in own if sample.slice and sample.slice.modality == own[0].slice.modality]
    largest = max(first, key=lambda sample: np.count_nonzero(index.reader.mask(sample) % IGNORE_INDEX))
    assert largest.slice is not None and isinstance(index.reader, VolumeReader)
    position = largest.slice.position
    samples = [sample for sample in own if sample.slice and sample.slice.position == position]
    names = list(index.reader.cases[name].scans)
    if len(samples) > 1 or len(names) == 1:
        return _view(index, samples, names, [display(index.reader.image(sample)) for sample in samples])
    image = index.reader.image(samples[0])
    step = image.shape[-1] // len(names)  # each with its neighbours, itself in the middle
    greys = [display(image[..., number * step + step // 2, None]) for number in range(len(names))]
    return _view(index, samples, names, greys)


def _view(
    index: DataIndex, samples: list[Sample], names: list[str], pictures: list[NDArray[np.uint8]]
) -> View:
    return View(samples=samples, names=names, pictures=pictures, mask=index.reader.mask(samples[0]))


def _first_columns(view: View, classes: Classes) -> list[list[Picture]]:
    """Image and ground truth of each row; the last row, of errors, begins with empty places."""
    rows = [[picture, overlay(picture, view.mask, classes)] for picture in view.pictures]
    if len(view.samples) > 1:
        rows.append([view.pictures[0], overlay(view.pictures[0], view.mask, classes)])
    return [*rows, [np.full_like(view.pictures[0], 255)] * 2]


def _row_names(view: View) -> list[str]:
    names = [*view.names, "combined"] if len(view.samples) > 1 else view.names
    return [*names, ""] if any(names) else []


def _boxed(rows: list[list[Picture]], boxes: NDArray[np.float32] | None) -> list[list[Picture]]:
    """The rows with boxes on images and answers; ground truth and errors stay as they are."""
    if boxes is None:
        return rows
    return [
        [picture if column == 1 else outline_boxes(picture, boxes) for column, picture in enumerate(row)]
        for row in rows[:-1]
    ] + rows[-1:]


def _answerers(
    runs: Sequence[RunRecord], config: RunConfig, classes: Classes
) -> Iterator[tuple[str, Inference]]:
    """The base, where it knows these classes, and the runs; one at a time in memory."""
    shown_already = any(run.result["method"] in ("base", "zero-shot") for run in runs)
    base = None if shown_already else _base(config, classes)
    if base is not None:
        yield "base", base
    del base
    for run in runs:
        loaded = load_run(run.folder.path)
        settings = InferenceSettings.from_dict(dict(loaded.description.inference))
        yield run.label, Inference(loaded.tunable.model, settings)


def _prompts_of(inference: Inference, view: View, index: DataIndex, settings: DataSettings) -> Prompts | None:
    """As for the scores; None for a model that takes none."""
    if not inference.model.prompted:
        return None
    source = PromptSource(settings, inference.model.prompted, index.classes.ignore_index)
    marked = source.marked(index.reader, view.samples[0], view.mask)
    return source.exact(torch.from_numpy(np.ascontiguousarray(marked)))


def _predict(
    inference: Inference, view: View, index: DataIndex, prompts: Prompts | None
) -> tuple[list[Classification], Classification]:
    """Classes by each sample of a view alone, and by all of them together."""
    images = torch.stack([to_tensor(index.reader.image(sample)) for sample in view.samples])
    given = None if prompts is None else stack_prompts([prompts] * len(images))
    probabilities = inference.probabilities(images, given).cpu()
    recipe = recipe_of(index)
    whole = combine(probabilities, "mean" if recipe is None else recipe.combination)
    parts = [part.numpy().astype(np.uint8) for part in probabilities.argmax(dim=1)]
    return parts, whole.numpy().astype(np.uint8)


def _errors(view: View, predicted: Classification, classes: Classes) -> Picture:
    """Wrong pixels on a pale grey image; those that count for nothing stay as they are."""
    pale = 160 + view.pictures[0].mean(axis=2, keepdims=True) * (95 / 255)
    drawn = np.repeat(pale, 3, axis=2).astype(np.uint8)
    drawn[(predicted != view.mask) & (view.mask != classes.ignore_index)] = WRONG
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
