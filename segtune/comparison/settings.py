"""The settings of a comparison (`compare.*`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from segtune.registry import nearest
from segtune.settings import Settings

PLACEMENTS = "all, first-N, last-N, global, windowed"


class ComparisonSettings(Settings):
    """What is compared, and how the scores are set against each other."""

    models: tuple[str | dict[str, Any], ...] = Field(
        (), description="names of models, or mappings of `model.*` settings; default: model.name"
    )
    methods: tuple[str | dict[str, Any], ...] = Field(
        (),
        description="names of methods, or mappings of `method.*` settings (a key with a dot is any other"
        " setting, such as data.colour); default: method.name",
    )
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="values of method.rank, for methods that have it"
    )
    placements: tuple[
        Annotated[str, Field(pattern=r"^(all|(first|last)-[1-9]\d*|global|windowed)$")], ...
    ] = Field((), description="all, first-N or last-N blocks, global or windowed attention blocks")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="values of optim.learning_rate, each a row of its own"
    )
    search_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="learning rates to try for each row before its runs; the validation score decides"
    )
    search_steps: int | None = Field(
        None, ge=1, description="optimiser steps of each such trial; default: as many as a run has"
    )
    search_seed: int = Field(1000, ge=0, description="seed of the trials, other than that of any run")
    seeds: int = Field(
        1, ge=1, le=1000, description="runs of each row, with seeds train.seed, train.seed + 1, ..."
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=100,
        description="parts for cross-validation: every image is tested once, groups stay whole",
    )
    score: str | None = Field(None, description="metric that decides; default: train.monitor")
    resample: Literal["image", "group"] = Field(
        "image",
        description="what the bootstrap draws: images (or volumes), or whole groups (patients, sequences)",
    )
    resamples: int = Field(2000, ge=100, le=100_000, description="draws of the bootstrap")
    engine: Literal["local", "ray"] = Field("local", description="who runs the cells")
    jobs: int = Field(1, ge=1, le=1000, description="cells that run at once")
    gpus_per_job: float = Field(1.0, gt=0, le=64, description="of ray; 0.5 puts two cells on one GPU")
    cpus_per_job: int = Field(1, ge=1, le=1000, description="of ray")
    retries: int = Field(
        2, ge=0, le=100, description="of ray: how often a cell is begun again whose worker was lost"
    )

    @field_validator("models", "methods", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_kind_of_rates(self) -> ComparisonSettings:
        if self.learning_rates and self.search_rates:
            raise ValueError("learning_rates makes a row of each rate, search_rates chooses one: give either")
        return self


def meant_setting(key: str) -> str | None:
    """The setting of a comparison that was probably meant, or None."""
    return nearest(key, list(ComparisonSettings.model_fields))
