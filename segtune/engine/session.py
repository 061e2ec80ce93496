"""Using a finished run: scores on a split, masks for images, attention of base and tuned model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from segtune.config.layers import Layer, nest
from segtune.config.load import load_config
from segtune.config.run import RunConfig
from segtune.data.base import DataIndex
from segtune.data.files import read_image
from segtune.data.open import open_data
from segtune.data.prompts import PromptSource
from segtune.data.settings import DataSettings
from segtune.data.transforms import to_tensor
from segtune.data.volumes.settings import VolumeSettings
from segtune.engine.adapter import AdapterDescription, load_base
from segtune.engine.attention import LayerDistance, attention_distances
from segtune.engine.build import place
from segtune.engine.evaluate import Evaluation, evaluate_samples, require_two_classes
from segtune.engine.infer import Inference, InferenceSettings
from segtune.engine.intake import usable_data
from segtune.engine.predict import Prediction, find_images
from segtune.engine.predict_volumes import predict_volumes
from segtune.engine.raster import predict_images
from segtune.engine.reporter import Reporter
from segtune.engine.run import LoadedRun, load_run
from segtune.errors import DataError, SettingsError, UsageError

READING = ("resize", "window", "overlap", "flip_tta")
"""Settings of `data.*` that say how images are fed to a model."""


def evaluate_run(
    run: Path,
    *,
    data: Path | None,
    split: str,
    settings: Mapping[str, Any],
    weights: str | None = None,
    batch_size: int = 1,
    saliency: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Scores a run's best model on a split; see `segtune.evaluate`.

    Raises:
        DataError: no images in the split, or other classes than the model's.
        UsageError: saliency scores of other than two classes.
    """
    reporter = reporter or Reporter()
    loaded = load_run(run, weights=weights)
    if saliency:
        require_two_classes(len(loaded.description.class_names))
    if loaded.config is None and data is None:
        raise UsageError("an adapter folder does not say which data to use", hint="give it with --data")
    config = _with_settings(loaded, settings)
    path = data if data is not None else config.data_path
    assert path is not None
    index = open_data(path, as_trained(config.data, loaded.description, settings))
    reporter.note(*index.evidence)
    require_same_classes(index, loaded.description, reporter)
    samples = [s for s in usable_data(config, index).split(split) if s.mask is not None]
    inference = Inference(loaded.tunable.model, inference_settings(loaded, settings))
    return evaluate_samples(
        inference,
        index,
        samples,
        config.data,
        split=split,
        batch_size=batch_size,
        saliency=saliency,
        progress=reporter.evaluating,
    )


def predict_run(
    run: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    overlays: bool,
    batch_size: int = 1,
    settings: Mapping[str, Any],
    weights: str | None = None,
    prompts: Path | None = None,
    prompts_from_masks: bool = False,
    polygons: bool = False,
    reporter: Reporter | None = None,
) -> Iterator[Prediction]:
    """Predicts masks with a run's best model; see `segtune.predict`.

    Raises:
        UsageError: prompts from masks where there are none, or beside a file of prompts.
    """
    loaded = load_run(run, weights=weights)
    inference = inference_settings(loaded, settings)
    if prompts_from_masks and (prompts is not None or inference.volume is None):
        raise UsageError(
            "prompts are drawn from the masks of volumes, and only where no file gives them",
            hint="either --prompts FILE or --prompts-from-masks" if prompts is not None else "--prompts FILE",
        )
    if inference.volume is None:
        return predict_images(
            loaded,
            inputs,
            out,
            settings=inference,
            overlays=overlays,
            batch_size=batch_size,
            prompts=prompts,
            polygons=polygons,
            reporter=reporter,
        )
    if polygons:
        raise UsageError("polygons are drawn for GeoTIFF files, not for volumes", hint="leave --polygons out")
    source = None
    if prompts_from_masks:
        data = _with_settings(loaded, settings).data
        source = PromptSource(data, loaded.tunable.model.prompted, loaded.description.ignore_index)
    return predict_volumes(
        loaded,
        inputs,
        out,
        settings=inference,
        overlays=overlays,
        batch_size=batch_size,
        prompts=prompts or source,
        reporter=reporter,
    )


def attention_run(
    run: Path,
    inputs: Sequence[Path],
    *,
    limit: int,
    settings: Mapping[str, Any],
    weights: str | None = None,
    reporter: Reporter | None = None,
) -> tuple[dict[str, list[LayerDistance]], int]:
    """Mean attention distances of a run's base and of its tuned model on the same images.

    Args:
        run: a run's folder.
        inputs: image files and folders.
        limit: at most so many images, evenly spread over those that are there.
        settings: `data.*` settings by dotted key, over those of the run.
        weights: where the base's weights lie now, if not where they were.
        reporter: hears about progress.

    Returns:
        Distances of "base" and "tuned", block by block, and the number of images.

    Raises:
        UsageError: no image, or a model without attention.
        DataError: an image cannot be read, or has other channels than the model takes.
    """
    reporter = reporter or Reporter()
    found = [path for path, _ in find_images(inputs, run)]
    step = max(1.0, len(found) / limit)
    chosen = [found[int(number * step)] for number in range(min(limit, len(found)))]
    loaded = load_run(run, weights=weights)
    feeding = inference_settings(loaded, settings)
    wanted = loaded.tunable.model.input_spec.channels
    device = next(loaded.tunable.model.parameters()).device
    models = {"base": place(load_base(loaded.description, weights=weights), device)}
    models["tuned"] = loaded.tunable.model
    done = 0

    def images() -> Iterator[Tensor]:
        for path in chosen:
            image = read_image(path)
            if image.shape[-1] != wanted:
                raise DataError(
                    f"{path} has {image.shape[-1]} channels, the model takes {wanted}",
                    hint="give images of the kind that the model was trained on",
                )
            yield to_tensor(image)[None]

    def progress() -> None:
        nonlocal done
        done += 1
        reporter.evaluating(done, len(models) * len(chosen))

    return {
        name: attention_distances(Inference(model, feeding), images(), progress)
        for name, model in models.items()
    }, len(chosen)


def require_same_classes(index: DataIndex, model: AdapterDescription, reporter: Reporter) -> None:
    """Refuses data that the model cannot be scored on, and names classes that may not be the same."""
    names, wanted = index.classes.names, model.class_names
    if len(names) != len(wanted):
        raise DataError(
            f"the data has {len(names)} classes ({_few(names)}), the model {len(wanted)} ({_few(wanted)})",
            hint="name the data's classes in dataset.yaml as the model's, or map values with data.values",
        )
    if index.channels != model.channels:
        raise DataError(
            f"the images have {index.channels} channels, the model takes {model.channels}",
            hint="give images of the kind that the model was trained on",
        )
    if names != wanted:
        reporter.note(
            f"warning: the data's classes are called {_few(names)}, the model's {_few(wanted)};"
            " they are compared by their position"
        )


def as_trained(data: DataSettings, model: AdapterDescription, changed: Collection[str]) -> DataSettings:
    """Settings with volumes read as in training, crop and modalities included, but for what was changed."""
    recipe = InferenceSettings.from_dict(model.inference).volume
    if recipe is None:
        return data
    fields = {name: getattr(recipe, name) for name in VolumeSettings.model_fields}
    learned = {name: value for name, value in fields.items() if f"data.volume.{name}" not in changed}
    return data.model_copy(update={"volume": data.volume.model_copy(update=learned)})


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _with_settings(loaded: LoadedRun, settings: Mapping[str, Any]) -> RunConfig:
    """The run's settings with `data.*` of the user's over them."""
    for key in settings:
        if not key.startswith("data."):
            raise SettingsError([f"{key}: only data.* settings can be changed for a finished run"])
    description = loaded.description
    base: dict[str, Any] = (
        loaded.config.to_dict()
        if loaded.config is not None
        else {"model": {"name": description.model}, "method": {"name": "+".join(description.method)}}
    )
    return load_config([Layer("config.yaml", base), nest(settings.items(), "--set")])


def inference_settings(loaded: LoadedRun, settings: Mapping[str, Any]) -> InferenceSettings:
    """How images are fed: as in training, but for what the user changed."""
    own = dict(loaded.description.inference)
    changed = _with_settings(loaded, settings).data
    for name in READING:
        if f"data.{name}" in settings:
            own[name] = getattr(changed, name)
    if own.get("volume") is not None:
        over = {key.removeprefix("data.volume."): value for key, value in settings.items()}
        stated = {
            name: value for name, value in changed.volume.model_dump(mode="json").items() if name in over
        }
        own["volume"] = {**own["volume"], **stated}
    if own["precision"] == "16" and next(loaded.tunable.model.parameters()).device.type == "cpu":
        own["precision"] = "32"  # half precision convolutions do not exist on every processor
    return InferenceSettings.from_dict(own)
