"""The settings of one run, complete and frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from segtune.data.settings import DataSettings
from segtune.settings import Settings

DEFAULT_EPOCHS = 20
CROSS_ENTROPY = "cross_entropy"
"""What may be monitored beside the metrics: the loss per pixel on whole images."""
LOWER_IS_BETTER = frozenset({CROSS_ENTROPY, "ber", "mean_ber", "mean_absolute_error", "volume_hd95"})


class OptimSettings(Settings):
    """Settings of the optimiser and its schedule (`optim.*`)."""

    name: Literal["adam", "adamw", "sgd"] = Field("adamw", description="optimiser")
    learning_rate: float | Literal["auto"] = Field(
        "auto", description="peak learning rate; auto: the method's own"
    )
    weight_decay: float = Field(0.01, ge=0, description="of weight matrices; never of norms and biases")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of adam and adamw")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    schedule: Literal["cosine", "poly", "constant"] = Field("cosine", description="after the warm-up")
    poly_power: float = Field(0.9, gt=0, description="exponent of the poly schedule")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps with a rising learning rate")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: no clipping")

    @model_validator(mode="after")
    def _positive(self) -> OptimSettings:
        if self.learning_rate != "auto" and self.learning_rate <= 0:
            raise ValueError("learning_rate must be greater than 0")
        return self


class TrainSettings(Settings):
    """Settings of the training loop (`train.*`)."""

    epochs: int | None = Field(None, ge=1, description=f"passes over the data; default {DEFAULT_EPOCHS}")
    steps: int | None = Field(None, ge=1, description="optimiser steps, instead of epochs")
    seconds: float | None = Field(
        None,
        gt=0,
        description="stop after so many seconds of training steps, instead of or besides the above",
    )
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        8,
        description="images that enter the network at once, over all processes together; auto: the most that"
        " memory holds, up to 64",
    )
    devices: int = Field(1, ge=1, description="processes on each machine, one for each GPU")
    num_nodes: int = Field(1, ge=1, description="machines")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="of several processes: ddp, each holds the whole model; fsdp, they divide it among them",
    )
    accumulate: int = Field(1, ge=1, description="batches summed up for one optimiser step")
    precision: Literal["auto", "32", "bf16", "16"] = Field(
        "auto", description="auto: bf16 where the processor has it, else 32"
    )
    seed: int = Field(0, ge=0, description="of initial weights, order, augmentation and dropout")
    accelerator: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    threads: int | None = Field(None, ge=1, description="processor threads; default: all cores")
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    early_stop: int | None = Field(None, ge=1, description="validations without a better score to stop after")
    average_best: int | None = Field(
        None,
        ge=2,
        description="end with the average of the tensors of so many best validations",
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the tensors, which is scored and saved"
    )
    score_train: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        None, description="training images, evenly chosen, or all, that each validation scores too"
    )
    monitor: str = Field("miou", description="metric, or cross_entropy, that the best checkpoint has")
    saliency: bool = Field(
        False, description="saliency scores at every evaluation too (two classes): S-measure, E-measure, ..."
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; default: every epoch and at least every 500 steps"
    )
    cache: Literal["off", "prefix"] = Field(
        "off",
        description="prefix: what is frozen before the first trained layer is computed once for each image",
    )
    cache_precision: Literal["run", "bf16"] = Field(
        "run", description="what the cache keeps: activations as they are, or in half the space"
    )
    cache_views: int | None = Field(
        None, ge=1, description="with the cache: each image has so many augmented views, which repeat"
    )
    cache_limit: float = Field(20.0, gt=0, description="GiB of the folder of all caches of activations")

    trackers: tuple[str, ...] = Field(
        ("tensorboard",), description="tools that follow the run, see `segtune list trackers`"
    )
    tracker_project: str = Field("segtune", min_length=1, description="what trackers file the run under")
    profile_steps: int = Field(20, ge=1, description="steps whose parts `segtune fit --profile` times")

    @property
    def num_images(self) -> int:
        """Images in a batch, once "auto" has become a number."""
        assert self.batch_size != "auto", "a number stands in its place before anything is built"
        return self.batch_size

    @model_validator(mode="before")
    @classmethod
    def _as_text(cls, values: Any) -> Any:
        """YAML reads 32 as a number and off as False."""
        if not isinstance(values, dict):
            return values
        if isinstance(values.get("precision"), int):
            values = {**values, "precision": str(values["precision"])}
        if values.get("cache") is False:
            values = {**values, "cache": "off"}
        return values

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("train.epochs and train.steps exclude each other")
        if self.cache_views is not None and self.cache == "off":
            raise ValueError("train.cache_views is for train.cache=prefix")
        return self


class ModelCommonSettings(Settings):
    """Settings that hold for every model (`model.*`)."""

    quantize: Literal["none", "int8", "nf4"] = Field(
        "none",
        description="frozen linear layers' weights in 8 or 4 bits (nf4: the extra nf4); none: as they are",
    )


class LossCommonSettings(Settings):
    """Settings that hold for every loss (`loss.*`)."""

    auxiliary_weight: float = Field(0.4, ge=0, description="weight of auxiliary classifiers' loss")
    penalty_weight: float = Field(0.01, ge=0, description="weight of the losses that methods report")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run but the data's content.

    `sources` says for each dotted key where its value came from: "default" or what was read.
    """

    model: str
    weights: str
    model_common: ModelCommonSettings
    model_settings: Settings
    method: str
    method_parts: dict[str, Settings]
    loss: str
    loss_common: LossCommonSettings
    loss_settings: Settings
    data_path: Path | None
    data: DataSettings
    optim: OptimSettings
    train: TrainSettings
    sources: dict[str, str] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Nested mapping of plain values, as written to `config.yaml` and read back by `load_config`."""
        parts = {name: settings.model_dump(mode="json") for name, settings in self.method_parts.items()}
        method = next(iter(parts.values())) if len(parts) == 1 else parts
        data = {"path": str(self.data_path)} if self.data_path is not None else {}
        return {
            "model": {
                "name": self.model,
                "weights": self.weights,
                **self.model_common.model_dump(mode="json"),
                **self.model_settings.model_dump(mode="json"),
            },
            "method": {"name": self.method, **method},
            "data": {**data, **self.data.model_dump(mode="json")},
            "loss": {
                "name": self.loss,
                **self.loss_common.model_dump(mode="json"),
                **self.loss_settings.model_dump(mode="json"),
            },
            "optim": self.optim.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json"),
        }
