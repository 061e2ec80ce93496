"""From one image to class probabilities at its own size: the only way in which models are used.

Evaluation and prediction both go through `Inference`, so that a score belongs to what the user gets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field, TypeAdapter
from torch import Tensor

from segtune.data.settings import DataSettings
from segtune.data.volumes.settings import VolumeRecipe
from segtune.engine.failures import is_out_of_memory
from segtune.engine.prefix_cache import PrefixCache
from segtune.engine.prompts import mirror_prompts, pick_prompts, scale_prompts, to_device
from segtune.errors import TrainingError, UsageError
from segtune.models.base import SegModel
from segtune.types import Prompts

LARGE_IMAGE = 4_000_000
"""Pixels from which `window=auto` slides a window instead of taking the image whole."""
AUTO_WINDOW = (1024, 1024)


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """How images are fed to a model.

    Args:
        resize: height and width that every image is resized to before the model, or None.
        window: height and width of a sliding window, "auto" for large images only, or None.
        overlap: share of a window that overlaps its neighbour.
        flip_tta: average with the horizontally flipped image.
        precision: "32", "bf16" or "16".
        bands: channels of image files that the model takes, or None for the usual ones.
        value_range: values of image files that are black and white, or None for those of the type.
        volume: how volumes become slice images and predictions volumes; None where images are fed.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    resize: tuple[int, int] | None = None
    window: tuple[int, int] | Literal["auto"] | None = "auto"
    overlap: float = 0.25
    flip_tta: bool = False
    precision: Annotated[str, Field(pattern="^(32|bf16|16)$")] = "32"
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    volume: VolumeRecipe | None = None

    @classmethod
    def from_data(
        cls, data: DataSettings, precision: str, volume: VolumeRecipe | None = None
    ) -> InferenceSettings:
        """The settings of a run."""
        return cls(
            resize=data.resize,
            window=data.window,
            overlap=data.overlap,
            flip_tta=data.flip_tta,
            precision=precision,
            bands=data.bands,
            value_range=data.value_range,
            volume=volume,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InferenceSettings:
        """From plain values, as an adapter's description holds them.

        Raises:
            ValidationError: a value is missing, unknown or of another type.
        """
        return TypeAdapter(cls).validate_python(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        volume = None if self.volume is None else self.volume.model_dump(mode="json")
        return {**asdict(self), "volume": volume}


class Inference:
    """A model with its way of being fed.

    Args:
        model: in eval mode, on its device.
        settings: how images are fed.
        cache: of what the model's frozen sections give.

    Raises:
        UsageError: windows for a model that is prompted.
    """

    def __init__(
        self, model: SegModel, settings: InferenceSettings, cache: PrefixCache | None = None
    ) -> None:
        require_whole_images(model, settings)
        self.cache = cache
        self.model = model
        self.settings = settings
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def probabilities(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Images [B, C, H, W] in [0, 1] to float32 probabilities [B, K, H, W] at the same size.

        Args:
            images: all of one size.
            prompts: in pixels of these images, for models that are prompted.

        Raises:
            TrainingError: memory ran out.
        """
        try:
            return self._probabilities(images, to_device(prompts, self.device))
        except RuntimeError as error:
            if is_out_of_memory(error):
                height, width = images.shape[-2:]
                raise TrainingError(
                    f"out of memory on {self.device} with {len(images)} images of {height}x{width} pixels",
                    hint="--set data.resize=1024,1024 makes them smaller; or a smaller --batch-size"
                    if self.model.prompted
                    else "--set data.window=512,512 takes them in parts; or a smaller --batch-size",
                ) from error
            raise

    def _probabilities(self, images: Tensor, prompts: Prompts | None) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        images = images.to(self.device, memory_format=torch.channels_last)
        if self.settings.resize is not None and size != self.settings.resize:
            images = F.interpolate(
                images, self.settings.resize, mode="bilinear", align_corners=False, antialias=True
            )
            prompts = prompts and scale_prompts(prompts, size, self.settings.resize)
        probabilities = self._sides(images, prompts)
        if probabilities.shape[-2:] != size:
            probabilities = F.interpolate(probabilities, size, mode="bilinear", align_corners=False)
        return probabilities

    @torch.inference_mode()
    def window(self, images: Tensor) -> Tensor:
        """One window of several images [B, C, h, w] in [0, 1] to probabilities [B, K, h, w], not cut further.

        Raises:
            TrainingError: memory ran out.
        """
        try:
            return self._forward(images.to(self.device, memory_format=torch.channels_last))
        except RuntimeError as error:
            if is_out_of_memory(error):
                height, width = images.shape[-2:]
                raise TrainingError(
                    f"out of memory on {self.device} with {len(images)} windows of {height}x{width} pixels",
                    hint="--set data.window=512,512 makes them smaller; or a smaller --batch-size",
                ) from error
            raise

    def classes(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Images [B, C, H, W] to the most probable class of each pixel, int64 [B, H, W] on the CPU."""
        return most_probable(self.probabilities(images, prompts)).cpu()

    def _sides(self, images: Tensor, prompts: Prompts | None) -> Tensor:
        probabilities = self._windows(images, prompts)
        if self.settings.flip_tta:
            mirrored = prompts and mirror_prompts(prompts, images.shape[-1])
            probabilities = (probabilities + self._windows(images.flip(-1), mirrored).flip(-1)) / 2
        return probabilities

    def _windows(self, images: Tensor, prompts: Prompts | None) -> Tensor:
        if self.model.prompted:
            return self._forward(images, prompts)
        height, width = images.shape[-2:]
        rows, columns = window_size(self.settings, height, width)
        if (rows, columns) == (height, width):
            return self._forward(images)
        weight = window_weights(rows, columns, self.settings.overlap).to(self.device)
        total = torch.zeros(images.shape[0], self.model.num_classes, height, width, device=self.device)
        weights = torch.zeros(height, width, device=self.device)
        for top in window_starts(height, rows, self.settings.overlap):
            for left in window_starts(width, columns, self.settings.overlap):
                part = (..., slice(top, top + rows), slice(left, left + columns))
                total[part] += self._forward(images[part]) * weight
                weights[part] += weight
        return total / weights

    def _forward(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        if prompts is not None and not (known := (prompts.classes >= 0).any(dim=1)).all():
            # Nothing is pointed at: such an image is background, whatever the network would say.
            size = (len(images), self.model.num_classes, *images.shape[-2:])
            probabilities = torch.zeros(size, device=images.device)
            probabilities[:, 0] = 1
            if known.any():
                probabilities[known] = self._forward(images[known], pick_prompts(prompts, known))
            return probabilities
        precision = self.settings.precision
        dtype = torch.float16 if precision == "16" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=dtype, enabled=precision != "32"):
            cut = None if self.cache is None else self.cache(images)
            logits: Tensor = self.model(images, prompts=prompts, cut=cut).logits
        return logits.float().softmax(dim=1)


def most_probable(probabilities: Tensor) -> Tensor:
    """The class of each pixel, int64 [B, H, W]; the first of several that are equally probable.

    The same as `argmax`, which takes three to ten times as long over channels on a CPU.
    """
    return probabilities.max(dim=1).indices


def require_whole_images(model: SegModel, settings: InferenceSettings) -> None:
    """Raises UsageError where a model that is prompted would be fed with windows.

    A window that shows a part of an object has neither the object's box nor, perhaps, a point on it.
    """
    if model.prompted and isinstance(settings.window, tuple):
        raise UsageError(
            f"data.window={settings.window[0]},{settings.window[1]}: a prompt belongs to a whole object,"
            " which a window may cut",
            hint="leave data.window at auto, which takes images whole here; data.resize makes them smaller",
        )


def window_size(settings: InferenceSettings, height: int, width: int) -> tuple[int, int]:
    """Height and width of the windows for an image of a size; that size itself where it is taken whole."""
    window = settings.window
    if window == "auto":
        window = AUTO_WINDOW if height * width > LARGE_IMAGE else None
    return (height, width) if window is None else (min(window[0], height), min(window[1], width))


def window_starts(length: int, window: int, overlap: float) -> Sequence[int]:
    """First pixels of windows that cover a side evenly and overlap by at least the share asked for."""
    stride = max(1, int(window * (1 - overlap)))
    count = math.ceil((length - window) / stride) + 1
    return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]


def window_weights(rows: int, columns: int, overlap: float) -> Tensor:
    """Weights [h, w] of a window: 1 inside, falling linearly towards the rims that overlap."""

    def ramp(length: int) -> Tensor:
        distance = torch.arange(length, dtype=torch.float32) + 0.5
        distance = torch.minimum(distance, length - distance)
        return (distance / max(1.0, length * overlap)).clamp(max=1.0)

    return ramp(rows)[:, None] * ramp(columns)[None, :]
