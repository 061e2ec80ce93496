"""Settings of medical volumes (`data.volume.*`), and what a run keeps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from segtune.settings import Settings


class VolumeSettings(Settings):
    """How volumes are cut into slices and how slices become images."""

    axis: Literal["axial", "coronal", "sagittal"] = Field(
        "axial", description="plane of the slices; rows and columns follow the patient's axes, not the file's"
    )
    slices: Literal["all", "tumour", "every-2nd", "random-n", "max-area"] = Field(
        "all",
        description="slices to train on: all; tumour: those with any foreground; every-2nd, random-n: of "
        "those; max-area: the one with the largest foreground. Scores always count every slice",
    )
    num_slices: int = Field(16, ge=1, description="random-n: slices of each volume")
    neighbours: int = Field(0, ge=0, le=4, description="slices on either side that are channels too (2.5-D)")
    modalities: Literal["channels", "separate"] = Field(
        "channels", description="channels: one image of all modalities; separate: one image of each"
    )
    modality_names: tuple[str, ...] | None = Field(
        None, description="modalities to use, in this order; default: all there are"
    )
    combination: Literal["mean", "majority"] = Field(
        "mean", description="separate modalities: mean of their probabilities, or the most frequent class"
    )
    labels: Literal["classes", "tumour", "regions"] = Field(
        "classes",
        description="classes: as in the masks; tumour: any foreground; regions (brats): whole tumour, "
        "core and enhancing tumour, nested",
    )
    crop: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | Literal["brain"] | None = Field(
        None,
        description="height, width of the part of each slice that is used, on the middle of the body; "
        "brain: the smallest that holds every training volume's; null: whole slices",
    )
    normalise: Literal["z-score", "percentile", "window"] = Field(
        "z-score", description="how intensities inside of the body become [0, 1]"
    )
    percentiles: tuple[float, float] = Field(
        (0.5, 99.5), description="intensities are clipped to these percentiles of the body first"
    )
    z_limit: float = Field(4.0, gt=0, description="z-score: -z_limit..z_limit becomes 0..1")
    window: tuple[float, float] | None = Field(
        None, description="window: lowest and highest intensity, e.g. -160,240 Hounsfield units"
    )
    tolerance: float = Field(1.0, gt=0, description="millimetres of the surface Dice")
    cache: str | None = Field(None, description="folder of unpacked volumes; default: in ~/.cache/segtune")
    cache_gib: float = Field(20.0, gt=0, description="largest size of that folder; the oldest files go first")

    @field_validator("percentiles")
    @classmethod
    def _rising_percentiles(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError(f"two rising numbers within 0..100 are needed, not {value[0]}, {value[1]}")
        return value

    @model_validator(mode="after")
    def _window_where_used(self) -> VolumeSettings:
        if (self.normalise == "window") != (self.window is not None):
            raise ValueError("normalise=window and window=LOW,HIGH belong together")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window starts at {self.window[0]}, not below its end {self.window[1]}")
        return self

    @property
    def channels(self) -> int:
        """Channels of a slice image; one grey slice is repeated to three, as every grey image is."""
        separate = self.modalities == "separate"
        grey = (1 if separate else len(self.modality_names or ("",))) * (2 * self.neighbours + 1)
        return 3 if grey == 1 else grey

    @property
    def folder(self) -> Path:
        """Where unpacked volumes are kept."""
        if self.cache is not None:
            return Path(self.cache).expanduser()
        return Path.home() / ".cache" / "segtune" / "volumes"


class VolumeRecipe(VolumeSettings):
    """The settings with everything filled in that training found out; kept in the adapter."""

    format: str
    """Name of the format; it finds the volumes to predict too."""
    label_values: tuple[int, ...]
    """K values that masks are written with, by class."""
    label_type: str
    """numpy's name of the type that masks are written with: that of the training masks."""
    classes_of: dict[int, int]
    """Value in mask files -> class or the ignore index."""
    regions: dict[str, tuple[int, ...]]
    """What is scored in each volume: name -> classes that make it up."""
