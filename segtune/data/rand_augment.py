"""RandAugment for an image together with its mask.

torchvision's own RandAugment refuses masks, because it has no rule for them. Here the operations
that move pixels move the mask too: nearest neighbour, and the ignore index where nothing is known.
Images stay float32, so that 16-bit data is not cut down to 8 bits on the way (except by `equalize`).

Source: Cubuk et al. 2020, "RandAugment", section 3; ranges as in its appendix.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

# Ranges of the paper; each is reached at magnitude 30.
ROTATION_DEGREES = 30.0
SHEAR = 0.3
TRANSLATION = 150 / 331
"""Share of the side length."""
ENHANCEMENT = 0.9
POSTERIZE_BITS = 4
MAX_MAGNITUDE = 30

ColourOperation = Callable[[Tensor, float, float], Tensor]
"""Image, strength in [0, 1] and sign (-1 or 1) to image."""

COLOUR: dict[str, ColourOperation] = {
    "identity": lambda image, strength, sign: image,
    "brightness": lambda image, strength, sign: F.adjust_brightness(image, 1 + sign * ENHANCEMENT * strength),
    "saturation": lambda image, strength, sign: F.adjust_saturation(image, 1 + sign * ENHANCEMENT * strength),
    "contrast": lambda image, strength, sign: F.adjust_contrast(image, 1 + sign * ENHANCEMENT * strength),
    "sharpness": lambda image, strength, sign: F.adjust_sharpness(image, 1 + sign * ENHANCEMENT * strength),
    "posterize": lambda image, strength, sign: F.posterize(image, 8 - round(POSTERIZE_BITS * strength)),
    "solarize": lambda image, strength, sign: F.solarize(image, 1 - strength),
    "autocontrast": lambda image, strength, sign: F.autocontrast(image),
    "equalize": lambda image, strength, sign: F.equalize(image),
}
GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (*COLOUR, *GEOMETRY)


class RandAugment:
    """Applies operations drawn at random to an image and its mask.

    Args:
        num_operations: operations for each image.
        magnitude: strength of each, 1..30.
        ignore_index: value of mask pixels that come from outside of the image.
    """

    def __init__(self, num_operations: int, magnitude: int, ignore_index: int) -> None:
        self.num_operations = num_operations
        self.strength = magnitude / MAX_MAGNITUDE
        self.ignore_index = ignore_index

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Augments one image.

        Args:
            image: float32 [C, H, W] in [0, 1], C = 1 or 3.
            mask: [H, W], any integer type.

        Returns:
            Image and mask of the same shapes and types.
        """
        for _ in range(self.num_operations):
            name = OPERATIONS[int(torch.randint(len(OPERATIONS), ()))]
            sign = 1.0 if torch.rand(()) < 0.5 else -1.0
            if name in COLOUR:
                image = COLOUR[name](image, self.strength, sign)
            else:
                image, mask = self._move(name, sign, image, mask)
        return image, mask

    def _move(self, name: str, sign: float, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        height, width = mask.shape
        amount = sign * self.strength
        shear = math.degrees(math.atan(SHEAR * amount))
        parameters = {
            "angle": ROTATION_DEGREES * amount if name == "rotate" else 0.0,
            "translate": [
                round(TRANSLATION * amount * width) if name == "translate_x" else 0,
                round(TRANSLATION * amount * height) if name == "translate_y" else 0,
            ],
            "scale": 1.0,
            "shear": [shear if name == "shear_x" else 0.0, shear if name == "shear_y" else 0.0],
        }
        mean = image.mean(dim=(1, 2)).tolist()
        image = F.affine(image, **parameters, interpolation=InterpolationMode.BILINEAR, fill=mean)
        mask = F.affine(tv_tensors.Mask(mask), **parameters, fill=self.ignore_index)
        return image, mask.as_subclass(Tensor)
