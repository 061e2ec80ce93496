"""From file arrays to training samples: resize, scale, crop, pad, flip, colour.

Every random number comes from PyTorch's default generator on the CPU, so that whoever seeds it owns
the result (see `segtune.data.loading`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from segtune.data.base import Image
from segtune.data.rand_augment import RandAugment
from segtune.data.settings import DataSettings, Size
from segtune.errors import SettingsError

LARGEST_AUTO_CROP = 512
"""Pixels; side of the largest crop that `auto` picks."""
NUM_CROP_TRIES = 10


def to_tensor(image: Image) -> Tensor:
    """An image array as the tensor that every model takes.

    Args:
        image: [H, W, C]; uint8, uint16, or float in [0, 1] (clipped).

    Returns:
        float32 [C, H, W] in [0, 1].
    """
    values = np.array(image.transpose(2, 0, 1), dtype=np.float32, order="C")
    if image.dtype == np.uint8:
        values /= 255
    elif image.dtype == np.uint16:
        values /= 65535
    else:
        assert image.dtype.kind == "f", f"an image of type {image.dtype}"
        np.clip(values, 0, 1, out=values)
    return torch.from_numpy(values)


def resize(image: Tensor, mask: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Resizes an image and its mask alike.

    Args:
        image: float32 [C, H, W].
        mask: [H, W], any integer type.
        size: height, width in pixels.

    Returns:
        Image, bilinear with anti-aliasing; mask, the nearest pixel of the source.
    """
    if tuple(mask.shape) == tuple(size):
        return image, mask
    image = F.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    # Plain "nearest", which tv_tensors.Mask would get, takes the upper left pixel: half a pixel off.
    mask = F.resize(mask.unsqueeze(0), list(size), interpolation=InterpolationMode.NEAREST_EXACT)
    return image, mask.squeeze(0)


def pad(image: Tensor, mask: Tensor, size: Size, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Pads below and on the right to at least a size; the image with its mean, the mask with ignore.

    Args:
        image: float32 [C, H, W].
        mask: [H, W], any integer type.
        size: smallest height, width in pixels.
        ignore_index: value of the new mask pixels.

    Returns:
        Image and mask, at least of that size.
    """
    below, right = (max(wanted - have, 0) for wanted, have in zip(size, mask.shape, strict=True))
    if below or right:
        image = F.pad(image, [0, 0, right, below], fill=image.mean(dim=(1, 2)).tolist())
        mask = nn.functional.pad(mask, (0, right, 0, below), value=ignore_index)
    return image, mask


def resolve_crop(sizes: Iterable[Size], multiple: int) -> Size:
    """The crop that `data.crop: auto` stands for.

    Args:
        sizes: height, width of every training image, in pixels, at least one.
        multiple: of the model's input, in pixels.

    Returns:
        Height, width: the smallest image's sides, at most 512, rounded down to the multiple.
    """
    smallest = (min(side) for side in zip(*sizes, strict=True))
    height, width = (max(min(side, LARGEST_AUTO_CROP) // multiple * multiple, multiple) for side in smallest)
    return height, width


def num_views(settings: DataSettings, crop: Size | None, sizes: Iterable[Size]) -> int | None:
    """How many different training samples an image can become; None where there is no such number.

    Args:
        settings: sizes and strengths.
        crop: height, width in pixels of every sample; None for whole images.
        sizes: height, width of every image, in pixels.
    """
    low, high = settings.scale
    if low != high or settings.colour or settings.rand_augment:
        return None
    if crop is not None:
        window = _scaled(crop, 1 / low)
        for size in sizes if settings.resize is None else [settings.resize]:
            if size[0] > window[0] or size[1] > window[1]:
                return None
    flips = (settings.horizontal_flip, settings.vertical_flip)
    return int(np.prod([2 if 0 < probability < 1 else 1 for probability in flips]))


class TrainTransform:
    """Turns the arrays of a sample into a training sample, anew at each call.

    Args:
        settings: sizes and strengths.
        crop: height, width in pixels of every sample; None for whole images.
        channels: C of the images.
        ignore_index: value of mask pixels outside of the image.

    Raises:
        SettingsError: colour operations are asked for on images that are neither grey nor RGB.
    """

    def __init__(
        self, settings: DataSettings, *, crop: Size | None, channels: int, ignore_index: int
    ) -> None:
        problems = [
            f"data.{name}: {value} works on images with 1 or 3 channels, these have {channels}; set it to 0"
            for name, value in (("colour", settings.colour), ("rand_augment", settings.rand_augment))
            if value and channels not in (1, 3)
        ]
        if problems:
            raise SettingsError(problems)
        self.settings = settings
        self.crop = crop
        self.ignore_index = ignore_index
        self.flips = v2.Compose(
            [v2.RandomHorizontalFlip(settings.horizontal_flip), v2.RandomVerticalFlip(settings.vertical_flip)]
        )
        strength = settings.colour
        self.colour = v2.ColorJitter(
            brightness=strength, contrast=strength, saturation=strength, hue=strength / 4
        )
        self.rand_augment = RandAugment(
            settings.rand_augment, settings.rand_augment_magnitude, self.ignore_index
        )

    def __call__(self, image: Image, mask: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Draws one training sample.

        Args:
            image: [H, W, C], uint8, uint16 or float32.
            mask: [H, W] classes; more may stand above the lowest 8 bits, and is moved along.

        Returns:
            Image float32 [C, *crop] in [0, 1]; mask [*crop] of the given type, with the values of the
            given mask and the ignore index only.
        """
        if self.settings.resize is not None:
            image, mask = _resize_arrays(image, mask, self.settings.resize)
        low, high = self.settings.scale
        factor = low + (high - low) * float(torch.rand(()))
        # Cutting the window that will fill the crop, then scaling it, gives the same as scaling the
        # whole image first, at a fraction of the work on large images.
        size = self.crop or _scaled(mask.shape, factor)
        window = _scaled(self.crop, 1 / factor) if self.crop else mask.shape
        rows, columns = self._draw_window(mask, window)
        sample = to_tensor(image[rows, columns]), torch.from_numpy(np.ascontiguousarray(mask[rows, columns]))
        sample = pad(*sample, window, self.ignore_index)
        sample = resize(*sample, size)
        sample = self.flips(tv_tensors.Image(sample[0]), tv_tensors.Mask(sample[1]))
        if self.settings.colour:
            sample = self.colour(*sample)
        plain = sample[0].as_subclass(Tensor), sample[1].as_subclass(Tensor)
        return self.rand_augment(*plain)

    def _draw_window(self, mask: NDArray[Any], size: tuple[int, ...]) -> tuple[slice, slice]:
        """A window of at most `size`; of ten tries the first that is not one class's, or the least so."""
        rooms = [max(have - wanted, 0) for have, wanted in zip(mask.shape, size, strict=True)]
        num_tries = NUM_CROP_TRIES if any(rooms) else 1
        best: tuple[float, tuple[slice, slice]] | None = None
        for _ in range(num_tries):
            top, left = (int(torch.randint(room + 1, ())) for room in rooms)
            window = slice(top, top + size[0]), slice(left, left + size[1])
            share = self._largest_share(mask[window])
            if best is None or share < best[0]:
                best = share, window
            if share <= self.settings.class_aware:
                break
        assert best is not None
        return best[1]

    def _largest_share(self, mask: NDArray[Any]) -> float:
        """Share of the most frequent class among the pixels that count; above 1 where none does."""
        counts = np.bincount(mask.astype(np.uint8, copy=False).ravel(), minlength=256)
        counts[self.ignore_index] = 0
        total = counts.sum()
        return float(counts.max() / total) if total else 2.0


def _scaled(size: tuple[int, ...], factor: float) -> Size:
    height, width = (max(round(side * factor), 1) for side in size)
    return height, width


def _resize_arrays(image: Image, mask: NDArray[Any], size: Size) -> tuple[Image, NDArray[Any]]:
    resized, labels = resize(to_tensor(image), torch.from_numpy(mask), size)
    return resized.permute(1, 2, 0).numpy(), labels.numpy()
