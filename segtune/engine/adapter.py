"""Adapters on disk: what they hold, how they are written, and how a model comes back from one.

A folder with two files. `adapter.safetensors` holds every tensor that training could change: the
method's own, the head, base parameters that were trained, running statistics that moved.
`adapter.json` says what they belong to. Together with the base they give the model back bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

import segtune
from segtune.data.base import Classes
from segtune.engine.build import Tunable, build_tunable, place
from segtune.engine.files import write_json
from segtune.engine.folder import DESCRIPTION
from segtune.engine.infer import InferenceSettings
from segtune.engine.prompts import example_prompts
from segtune.engine.quantize import Quantized
from segtune.engine.tensors import read_tensors, write_tensors
from segtune.errors import AdapterError, UnknownNameError
from segtune.methods import METHODS
from segtune.models import MODELS
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.models.weights import WeightsReport, load_weights
from segtune.settings import Settings

FORMAT_VERSION = 1
TENSORS = "adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterDescription:
    """Everything that is needed to rebuild a tuned model from its base, as plain values."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    format_version: int = FORMAT_VERSION
    model: str
    model_settings: dict[str, Any]
    weights: str
    """What the base was loaded from: "none", a published name or a path."""
    weights_sha256: str | None
    """Hash of the weights file; None for random weights."""
    seed: int
    """Of the random start; with weights "none" it determines the base."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """How the weights of the base's frozen linear layers were kept."""
    base_fingerprint: str
    """Hash of the base tensors that the adapter does not carry, as they were loaded."""
    method: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Settings of each method by name, in order."""
    class_names: Annotated[tuple[str, ...], Field(min_length=2)]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    inference: dict[str, Any] = field(default_factory=dict)
    """resize, window, overlap, flip_tta, precision: how images are fed to the model."""
    self_contained: bool = False
    """The adapter carries every tensor of the model, so that the base's weights are not needed."""
    parameters_trainable: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> Classes:
        """The classes that the model tells apart."""
        return Classes(names=self.class_names, palette=self.palette, ignore_index=self.ignore_index)


def describe(
    tunable: Tunable, config_model: Any, classes: Classes, inference: dict[str, Any]
) -> AdapterDescription:
    """The description of a model that is about to be saved."""
    spec = tunable.model.input_spec
    return AdapterDescription(
        model=config_model.model,
        model_settings=config_model.model_settings.model_dump(mode="json"),
        weights=weights_name(tunable.weights, tunable.model),
        weights_sha256=tunable.weights.sha256,
        seed=config_model.train.seed,
        quantize=_kind(tunable.quantized),
        base_fingerprint=tunable.fingerprint(),
        method={
            name: settings.model_dump(mode="json") for name, settings in tunable.applied.settings.items()
        },
        class_names=classes.names,
        palette=classes.palette,
        ignore_index=classes.ignore_index,
        channels=spec.channels,
        mean=spec.mean,
        std=spec.std,
        inference=inference,
        self_contained=tunable.applied.keys() == tunable.model.state_dict().keys(),
        parameters_trainable=tunable.applied.counts()["trainable"],
        versions={"segtune": segtune.__version__, "torch": str(torch.__version__)},
    )


def _kind(quantized: Quantized | None) -> Literal["none", "int8", "nf4"]:
    return "none" if quantized is None else quantized.kind


def weights_name(report: WeightsReport, model: SegModel) -> str:
    """What the base's weights can be found by again: "none", a published name or a path."""
    if report.path is None or report.source in model.published():
        return report.source
    return str(report.path.resolve())


def save_adapter(tunable: Tunable, description: AdapterDescription, folder: Path) -> None:
    """Writes an adapter; each file is whole or not there, the description last."""
    metadata = {"format": f"segtune-adapter-{FORMAT_VERSION}", "base": description.base_fingerprint}
    write_tensors(folder / TENSORS, tunable.applied.state_dict(), metadata)
    write_json(folder / DESCRIPTION, asdict(description))


def verify_adapter(tunable: Tunable, folder: Path, images: Tensor) -> None:
    """Loads a saved adapter onto a base built anew and compares the outputs on one batch.

    Args:
        tunable: the model that was saved.
        folder: where.
        images: [B, C, H, W] in [0, 1], on the CPU.

    Raises:
        AdapterError: the outputs differ in a single bit.
    """
    device = next(tunable.model.parameters()).device
    loaded = place(load_adapter(folder)[0].model, device)
    images = images.to(device, memory_format=torch.channels_last)
    with torch.no_grad():
        prompts = example_prompts(loaded, images)
        expected = tunable.model.eval()(images, prompts=prompts).logits
        got = loaded(images, prompts=prompts).logits
    if not torch.equal(expected, got):
        difference = (expected - got).abs().max().item()
        raise AdapterError(
            f"the adapter in {folder} gives another output when it is loaded back"
            f" (difference {difference:.3g})",
            hint="this is a defect of segtune: please report it with the run's config.yaml",
        )


def read_description(folder: Path) -> AdapterDescription:
    """Reads and checks `adapter.json`.

    Raises:
        AdapterError: missing, damaged, or of a newer format.
    """
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format_version"]
    except FileNotFoundError:
        raise AdapterError(
            f"{folder} holds no adapter ({DESCRIPTION} is missing)",
            hint="name a run folder, or its adapter folder",
        ) from None
    except (ValueError, LookupError, TypeError, OSError, RecursionError) as error:
        raise AdapterError(f"{path} is damaged: {error}", hint="train again or use a copy") from None
    if version != FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format version {version}; this segtune reads version {FORMAT_VERSION}",
            hint="install the segtune version that wrote it (see its `versions`)",
        )
    try:
        description = TypeAdapter(AdapterDescription).validate_json(json.dumps(values))
        InferenceSettings.from_dict(description.inference)
        _settings_of(description)
    except (ValidationError, UnknownNameError, TypeError) as error:
        reason = _first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise AdapterError(
            f"{path} does not describe an adapter of this segtune: {reason}",
            hint=f"use a copy, or the segtune version that wrote it ({values.get('versions')})",
        ) from None
    return description


def _first_problem(errors: ValidationError) -> str:
    error = errors.errors(include_url=False)[0]
    where = ".".join(map(str, error["loc"]))
    return f"{where}: {error['msg']}" + (f" and {n} more" if (n := errors.error_count() - 1) else "")


def _settings_of(description: AdapterDescription) -> tuple[Settings, dict[str, Settings]]:
    """Settings of the model, and of each method by name."""
    model = MODELS.settings(description.model).model_validate(description.model_settings)
    parts = {name: METHODS.settings(name).model_validate(own) for name, own in description.method.items()}
    return model, parts


def load_base(description: AdapterDescription, *, weights: str | None = None) -> SegModel:
    """The base of an adapter, without the adapter; its head is that of the base's weights, or random.

    Args:
        description: of the adapter.
        weights: where the base's weights lie now, if not where they were.

    Returns:
        The model in eval mode on the CPU.

    Raises:
        WeightsError: the base's weights are not to be had.
    """
    settings, _ = _settings_of(description)
    model = build_model(description.model, len(description.class_names), settings, seed=description.seed)
    load_weights(model, description.weights if weights is None else weights)
    return model.eval()


def rebuild(description: AdapterDescription, weights: str) -> Tunable:
    """The base with the method on it as it was before training, on the CPU.

    Args:
        description: of the adapter.
        weights: of the base.
    """
    model_settings, parts = _settings_of(description)
    return build_tunable(
        model=description.model,
        model_settings=model_settings,
        weights=weights,
        num_classes=len(description.class_names),
        method_parts=parts,
        seed=description.seed,
        quantize=description.quantize,
    )


def load_adapter(folder: Path, *, weights: str | None = None) -> tuple[Tunable, AdapterDescription]:
    """Rebuilds a tuned model from its base and an adapter.

    Args:
        folder: the adapter's folder.
        weights: where the base's weights lie now, if not where they were.

    Returns:
        The model in eval mode on the CPU, and the adapter's description.

    Raises:
        AdapterError: the adapter is damaged or belongs to another base.
        WeightsError: the base's weights are not to be had.
    """
    description = read_description(folder)
    if weights is None:
        weights = "none" if description.self_contained else description.weights
    tunable = rebuild(description, weights)
    found = tunable.fingerprint()
    if found != description.base_fingerprint:
        raise AdapterError(
            f"the adapter in {folder} was trained on another base: its fingerprint is"
            f" {description.base_fingerprint[:16]}, that of {tunable.weights.source!r} is {found[:16]}",
            hint="give the weights that it was trained on with --weights FILE",
        )
    tunable.applied.load_state_dict(read_tensors(folder / TENSORS))
    tunable.model.eval()
    return tunable, description
