"""Settings of the data: how it is read, split, cut into training samples and windows (`data.*`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from segtune.data.volumes.settings import VolumeSettings
from segtune.settings import Settings

Pixels = Annotated[int, Field(ge=1)]
Size = tuple[Pixels, Pixels]
Factor = Annotated[float, Field(ge=0.05, le=20)]


class DataSettings(Settings):
    """How a data set is read and turned into training samples.

    Everything that `dataset.yaml` beside the data can say may be overridden here.
    """

    # --- reading ---
    format: str = Field("auto", description="name of a format, or auto")
    options: dict[str, Any] = Field(
        {}, description="settings of the format: data.options.NAME, see `segtune list formats --settings`"
    )
    masks: Literal["auto", "index", "palette", "rgb", "binary"] = Field(
        "auto", description="how mask files encode classes"
    )
    threshold: int | None = Field(
        None, ge=0, le=65534, description="binary masks: foreground is above this grey value"
    )
    values: dict[int, int] | None = Field(
        None, description="mask value in the file -> class (or the ignore index)"
    )
    classes: tuple[str, ...] | None = Field(None, min_length=2, description="class names, in order")
    ignore_index: int = Field(255, ge=0, le=255, description="mask value that never counts")
    bands: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        min_length=1,
        description="channels of the images to use, from 0; null: RGB, or all of more than four",
    )
    value_range: tuple[float, float] | None = Field(
        None, description="image values that are black and white; null: the whole range of 8 or 16 bits"
    )
    include: tuple[str, ...] = Field((), description="keep samples whose name matches one of these globs")
    exclude: tuple[str, ...] = Field((), description="drop samples whose name matches one of these globs")
    limit: int | None = Field(None, ge=1, description="at most this many samples of each split")
    cache: bool = Field(True, description="remember what files hold; unchanged ones are not checked again")
    allow: tuple[str, ...] = Field((), description="codes of data errors to go on with all the same")

    # --- splitting ---
    val_fraction: float = Field(0.15, ge=0, lt=1, description="share of groups for validation, if not given")
    test_fraction: float = Field(0.15, ge=0, lt=1, description="share of groups for testing, if not given")
    split_seed: int = Field(0, ge=0, description="seed of the split")
    train_on: Literal["train", "train+val"] = Field(
        "train", description="train+val: validation images are trained on too, and nothing is validated"
    )
    folds: int | None = Field(None, ge=2, description="parts for cross-validation, instead of given splits")
    fold: int = Field(0, ge=0, description="the part to test on, from 0; a share of the others validates")
    group: str | None = Field(
        None, description="regular expression on the sample's name; its first group names the group"
    )

    # --- training samples ---
    resize: Size | None = Field(None, description="height, width in pixels; every image is resized to this")
    crop: Size | Literal["auto"] | None = Field(
        "auto", description="height, width in pixels of a training crop; auto: up to 512; null: whole images"
    )
    class_aware: float = Field(
        0.75, gt=0, le=1, description="draw a crop again while one class covers more than this share"
    )
    scale: tuple[Factor, Factor] = Field((1.0, 1.0), description="range of the random scale factor")
    horizontal_flip: float = Field(0.5, ge=0, le=1, description="probability")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="probability")
    colour: float = Field(0.0, ge=0, le=1, description="strength of the colour jitter")
    rand_augment: int = Field(0, ge=0, le=5, description="number of RandAugment operations")
    rand_augment_magnitude: int = Field(9, ge=1, le=30, description="strength, out of 30")

    # --- prompts drawn from masks, for models that take them ---
    prompt_per: Literal["class", "component", "instance"] = Field(
        "class",
        description="an object is all of a class in an image, each connected part of it, or what the "
        "annotations draw as one (coco, labelme)",
    )
    prompt_jitter: float = Field(
        0.1, ge=0, lt=0.5, description="training: each edge of a box moves by up to this share of its side"
    )
    prompt_jitter_pixels: int = Field(20, ge=0, description="and by at most so many pixels")
    prompt_points: int = Field(1, ge=1, le=64, description="points on each object")
    prompt_objects: int = Field(16, ge=1, le=256, description="most objects of an image that are prompted")
    prompt_area: int = Field(
        1, ge=1, description="pixels below which an object is not prompted; ignored in training"
    )

    # --- whole images: evaluation and prediction ---
    window: Size | Literal["auto"] | None = Field(
        "auto", description="height, width in pixels of a sliding window; auto: for images above 4 megapixels"
    )
    overlap: float = Field(0.25, ge=0, le=0.9, description="share of a window that overlaps its neighbour")
    flip_tta: bool = Field(False, description="average with the horizontally flipped image")

    volume: VolumeSettings = Field(VolumeSettings(), description="medical volumes (data.volume.*)")
    workers: int = Field(0, ge=0, le=64, description="processes that load training samples")
    decoded_cache_gib: float = Field(
        0.0,
        ge=0,
        description="GiB of decoded images and masks that are kept on disk for later epochs; 0: none",
    )
    decoded_cache: str | None = Field(None, description="their folder; default: in ~/.cache/segtune")

    @field_validator("scale")
    @classmethod
    def _low_before_high(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError(f"the range starts at {scale[0]}, above its end {scale[1]}")
        return scale

    @field_validator("value_range")
    @classmethod
    def _not_empty(cls, value_range: tuple[float, float] | None) -> tuple[float, float] | None:
        if value_range is not None and value_range[0] >= value_range[1]:
            raise ValueError(f"black is {value_range[0]}, which is not below white, {value_range[1]}")
        return value_range
