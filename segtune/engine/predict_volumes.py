"""Masks for whole volumes: NIfTI files in the space of the volumes, streamed case after case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage

from segtune.data import FORMATS
from segtune.data.base import Classes, Sample
from segtune.data.msd import channel_cases
from segtune.data.preview import outline_boxes, overlay
from segtune.data.prompts import PromptSource, known_boxes, stack_prompts
from segtune.data.transforms import to_tensor
from segtune.data.volumes.build import slices_of
from segtune.data.volumes.nifti import is_volume
from segtune.data.volumes.nifti import stem as name_of
from segtune.data.volumes.reader import VolumeReader
from segtune.data.volumes.scan import Case
from segtune.data.volumes.settings import VolumeRecipe
from segtune.data.volumes.survey import Survey, survey
from segtune.engine.files import write_bytes, write_with
from segtune.engine.infer import Inference, InferenceSettings
from segtune.engine.predict import Prediction, display
from segtune.engine.reporter import Reporter
from segtune.engine.run import LoadedRun
from segtune.engine.volume_prompts import FORMAT, PromptsOf, from_file, from_masks
from segtune.engine.volumes import Volume, VolumeGathering
from segtune.errors import SegtuneError, UsageError

_NUMBERED = re.compile(r"^(image|channel_\d+)$")
"""Names of modalities that say nothing but their place."""


def find_cases(inputs: Sequence[Path], recipe: VolumeRecipe) -> list[Case]:
    """The cases that files and folders stand for, with the modalities' names of training.

    Those of folders have their masks, where there are any.

    Args:
        inputs: volumes, and folders laid out as in training, with or without masks.
        recipe: of the run.

    Raises:
        UsageError: a path does not exist, there is no volume, or two cases have one name.
    """
    for path in inputs:
        if not path.exists():
            raise UsageError(f"there is no file or folder {path}", hint="check the path")
        if path.is_file() and not is_volume(path):
            raise UsageError(
                f"{path} is no NIfTI volume", hint="the run was trained on .nii or .nii.gz files"
            )
    names = recipe.modality_names or ()
    files = [path for path in inputs if path.is_file()]
    _refuse_twice([name_of(path) for path in files])
    found = channel_cases(files, dict(enumerate(names)) if len(names) > 1 else {})
    for folder in (path for path in inputs if path.is_dir()):
        own = FORMATS.load(recipe.format)().cases(folder)
        if not own:
            raise UsageError(
                f"there is no volume in {folder}",
                hint=f"it is searched like the training data, format {recipe.format}",
            )
        found += own
    cases = [_renamed(case, names) for case in found]
    _refuse_twice([case.name for case in cases])
    return cases


def _refuse_twice(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(
            f"several volumes are called {twice[0]}", hint="predict them one by one, each with its own --out"
        )


def predict_volumes(
    run: LoadedRun,
    inputs: Sequence[Path],
    out: Path,
    *,
    settings: InferenceSettings | None = None,
    overlays: bool = True,
    batch_size: int = 1,
    prompts: Path | PromptSource | None = None,
    reporter: Reporter | None = None,
) -> Iterator[Prediction]:
    """Predicts a mask for each case and writes it as it is done.

    Args:
        run: a loaded run that was trained on volumes.
        inputs: volumes, and folders laid out as in training.
        out: folder for CASE.nii.gz, in the space, orientation and with the affine of the case's first file,
            and CASE_overlay.png, the slice with the largest foreground.
        settings: how volumes are fed; default: as in training.
        overlays: write the pictures too.
        batch_size: slices that enter the model at once.
        prompts: for a model that is prompted: a file (`engine/volume_prompts.py`), or what draws them from
            the masks that lie with the volumes.
        reporter: hears about progress and about cases that cannot be predicted.

    Yields:
        The files of each case, in order. A case whose files do not fit is reported and left out.

    Raises:
        UsageError: there is nothing to predict, a result would replace an input; prompts are missing,
            wrong or not wanted.
        SegtuneError: no case at all can be predicted.
    """
    reporter = reporter or Reporter()
    _require_prompts(run, prompts)
    settings = settings or InferenceSettings.from_dict(run.description.inference)
    recipe = settings.volume
    assert recipe is not None, "the run was trained on images"
    found = find_cases(inputs, recipe)
    failures = []
    if isinstance(prompts, PromptSource):
        failures = [f"{c.name}: there is no mask to draw prompts from" for c in found if c.label is None]
        wanted = [case for case in found if case.label is not None]
    else:
        wanted = [
            replace(case, label=None) for case in found
        ]  # whatever is wrong with a mask does not matter
    looked_at = survey(wanted, recipe.modality_names or (), recipe)
    failures += [message for items in looked_at.problems.values() for message, _ in items]
    failures += _drop_strange_masks(looked_at, recipe)
    reporter.note(*(f"left out: {message}" for message in failures))
    if not looked_at.cases:
        raise SegtuneError(f"none of the {len(found)} volumes can be predicted: {failures[0]}")
    cases = {case.name: case for case in looked_at.cases}
    _keep_sources(cases, out)
    reader = VolumeReader(recipe=recipe, cases=cases)
    prompts_of = _prompts_of(run, reader, prompts, reporter)
    inference = Inference(run.tunable.model, settings)
    samples = {case.name: slices_of(case, reader) for case in looked_at.cases}
    done, total = 0, sum(map(len, samples.values()))
    for name, own in samples.items():
        gathering = VolumeGathering(reader, own)
        for start in range(0, len(own), batch_size):
            batch = own[start : start + batch_size]
            images = torch.stack([to_tensor(reader.image(sample)) for sample in batch])
            given = None if prompts_of is None else stack_prompts([prompts_of(sample) for sample in batch])
            probabilities = inference.probabilities(images, given).cpu()
            done += len(batch)
            reporter.evaluating(done, total)
            for _, classes in gathering.add([sample.name for sample in batch], probabilities):
                yield _write(reader, own, classes, out / name, run.description.classes, overlays, prompts_of)


def _drop_strange_masks(looked_at: Survey, recipe: VolumeRecipe) -> list[str]:
    """Takes out the cases whose masks hold values that were no class in training, and says which."""
    strange = {
        case: [value for value in facts["values"] if int(value) not in recipe.classes_of]
        for case, facts in looked_at.labels.items()
    }
    looked_at.cases = [case for case in looked_at.cases if not strange.get(case.name)]
    return [
        f"{case}: its mask holds the values {', '.join(values)}, which mean no class to this model"
        for case, values in strange.items()
        if values
    ]


def _require_prompts(run: LoadedRun, prompts: Path | PromptSource | None) -> None:
    """Refuses prompts that are not wanted, and asks for those that are."""
    kinds = run.tunable.model.prompted
    if kinds and prompts is None:
        raise UsageError(
            f"{run.description.model} was tuned with prompts ({' and '.join(sorted(kinds))}) and needs them",
            hint=f"--prompts FILE.json with {FORMAT}; or --prompts-from-masks, where the volumes have masks",
        )
    if prompts is not None and not kinds:
        raise UsageError(f"{run.description.model} takes no prompts here", hint="leave them out")


def _prompts_of(
    run: LoadedRun, reader: VolumeReader, prompts: Path | PromptSource | None, reporter: Reporter
) -> PromptsOf | None:
    if prompts is None:
        return None
    if isinstance(prompts, PromptSource):
        reporter.note(f"prompts: {prompts.describe()}; such predictions know where the objects are")
        return from_masks(prompts, reader)
    return from_file(prompts, reader, run.description.classes, run.tunable.model.prompted)


def _renamed(case: Case, names: Sequence[str]) -> Case:
    """The case with its modalities called as in training, where its own names say nothing."""
    if len(case.scans) != len(names) or not all(map(_NUMBERED.match, case.scans)):
        return case
    return replace(case, scans=dict(zip(names, case.scans.values(), strict=True)))


def _keep_sources(cases: dict[str, Case], out: Path) -> None:
    """Refuses a folder in which a result would replace one of the volumes."""
    sources = {scan.path.resolve() for case in cases.values() for scan in case.scans.values()}
    for name in cases:
        target = _target(out / name)
        if target.resolve() in sources:
            raise UsageError(
                f"the result {target} would replace a volume of the same name",
                hint="give another folder with --out",
            )


def _target(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.nii.gz")


def _write(
    reader: VolumeReader,
    samples: Sequence[Sample],
    classes: Volume,
    stem: Path,
    palette: Classes,
    overlays: bool,
    prompts_of: PromptsOf | None,
) -> Prediction:
    name = samples[0].case
    write_bytes(_target(stem), reader.encode(name, classes))
    overlay_path = None
    if overlays:
        overlay_path = stem.with_name(f"{stem.name}_overlay.png")
        area = (classes > 0).sum(axis=(1, 2))
        position = int(area.argmax()) if area.any() else len(area) // 2
        shown = next(sample for sample in samples if sample.slice and sample.slice.position == position)
        part = display(reader.image(shown))
        picture = np.stack([reader.put_back(name, part[..., channel]) for channel in range(3)], axis=2)
        drawn = overlay(picture, classes[position], palette)
        boxes = None if prompts_of is None else known_boxes(prompts_of(shown))
        if boxes is not None:
            top, left = reader.offset(name)
            drawn = outline_boxes(drawn, boxes + np.array([left, top, left, top]))
        write_with(overlay_path, PillowImage.fromarray(drawn).save)
    return Prediction(image=reader.cases[name].first.path, mask=_target(stem), overlay=overlay_path)
