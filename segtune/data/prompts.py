"""Prompts drawn from masks: a box and points for each object, for models that are prompted.

In training the edges of boxes move at random and points lie anywhere on their object. For scores
nothing is random: the box is exact, and the points are those deepest inside of the object. Such scores
say how well objects are outlined, not how well they are found: the ground truth tells where they are.

Pixels count from the centre of the first one: an object that covers columns 3 to 5 has left 3 and
right 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segtune.data.base import DataIndex, Mask, Reader, Sample, tells_instances
from segtune.data.settings import DataSettings
from segtune.errors import UsageError
from segtune.types import Prompts

CLASS_BITS = 8
LOWEST = (1 << CLASS_BITS) - 1
"""Bits of a marked class map that hold the class; those above hold the number of the object."""


class PromptSource:
    """Draws the prompts of an image from its mask.

    Args:
        settings: what an object is, how many there may be, and how boxes and points are drawn.
        kinds: "box" and "point", or one of them: what the model needs.
        ignore_index: mask value that belongs to no object.
    """

    def __init__(self, settings: DataSettings, kinds: Iterable[str], ignore_index: int) -> None:
        self.settings = settings
        self.kinds = frozenset(kinds)
        self.ignore_index = ignore_index

    @property
    def per_instance(self) -> bool:
        """Whether objects are those of the annotations."""
        return self.settings.prompt_per == "instance"

    def check(self, index: DataIndex) -> None:
        """Raises UsageError where objects of the annotations are asked for and there are none."""
        if self.per_instance and not tells_instances(index.reader):
            raise UsageError(
                f"data.prompt_per=instance: {index.format} data does not tell the objects of a class apart",
                hint="coco and labelme data do; component takes each connected part for an object",
            )

    def marked(self, reader: Reader, sample: Sample, mask: Mask) -> NDArray[Any]:
        """A class map [H, W] with the numbers of objects above its lowest 8 bits, where they are asked for.

        So both go through crops, flips and turns as one.
        """
        if not self.per_instance:
            return mask
        numbers: NDArray[np.int32] = reader.instances(sample)  # type: ignore[attr-defined]
        return (numbers << CLASS_BITS) | mask

    def draw(self, mask: Tensor) -> tuple[Prompts, Tensor]:
        """Prompts for training, by PyTorch's default generator.

        Args:
            mask: uint8 [H, W], or what `marked` gave.

        Returns:
            Prompts of one image (B = 1), and the mask, uint8, in which objects without a prompt are ignored:
            no model can know of them.
        """
        objects, left_out = self._objects(mask.numpy(), shuffled=True)
        mask = mask if mask.dtype == torch.uint8 else (mask & LOWEST).to(torch.uint8)
        if left_out.any():
            mask = torch.where(torch.from_numpy(left_out), self.ignore_index, mask)
        boxes = [self._jittered(_box(found), found.shape) for _, found in objects]
        points = [_random_points(found, self.settings.prompt_points) for _, found in objects]
        return self._pack([label for label, _ in objects], boxes, points), mask

    def exact(self, mask: Tensor) -> Prompts:
        """Prompts for scores: the largest objects, nothing random.

        Args:
            mask: uint8 [H, W], or what `marked` gave.

        Returns:
            Prompts of one image (B = 1).
        """
        objects, _ = self._objects(mask.numpy(), shuffled=False)
        boxes = [_box(found) for _, found in objects]
        points = [deepest_points(found, self.settings.prompt_points) for _, found in objects]
        return self._pack([label for label, _ in objects], boxes, points)

    def describe(self) -> str:
        """What `exact` gives, in words."""
        return (
            f"{' and '.join(sorted(self.kinds))} for each {self.settings.prompt_per}, from the ground truth"
        )

    def _objects(
        self, marked: NDArray[Any], *, shuffled: bool
    ) -> tuple[list[tuple[int, NDArray[np.bool_]]], NDArray[np.bool_]]:
        """Class and pixels of each object that is prompted, and the pixels of those that are not."""
        numbers, labels = self._instances(marked) if self.per_instance else self._parts(marked)
        areas = np.bincount(numbers.ravel(), minlength=len(labels))
        large = [number for number in range(1, len(labels)) if areas[number] >= self.settings.prompt_area]
        if shuffled:
            large = [large[place] for place in torch.randperm(len(large)).tolist()]
        else:
            large.sort(key=lambda number: -int(areas[number]))
        chosen = large[: self.settings.prompt_objects]
        left_out = (numbers > 0) & ~np.isin(numbers, chosen)
        return [(labels[number], numbers == number) for number in chosen], left_out

    def _parts(self, mask: NDArray[np.uint8]) -> tuple[NDArray[np.int32], list[int]]:
        """The number of each pixel's object, 0 where there is none, and the class of each number."""
        from scipy import ndimage  # takes a quarter of a second, and only prompts need it

        numbers = np.zeros(mask.shape, np.int32)
        labels = [0]
        for label in np.unique(mask):
            if label in (0, self.ignore_index):
                continue
            pixels = mask == label
            parts, count = pixels, 1
            if self.settings.prompt_per == "component":
                parts, count = ndimage.label(pixels, structure=np.ones((3, 3)))
            numbers[pixels] = parts[pixels] + (len(labels) - 1)
            labels += [int(label)] * count
        return numbers, labels

    def _instances(self, marked: NDArray[Any]) -> tuple[NDArray[np.int32], list[int]]:
        """As `_parts`, for the objects of the annotations."""
        found, numbers = np.unique(marked.astype(np.int32), return_inverse=True)
        labels = found & LOWEST
        is_object = (found >> CLASS_BITS > 0) & (labels != 0) & (labels != self.ignore_index)
        new = np.where(is_object, np.cumsum(is_object), 0).astype(np.int32)
        return new[numbers].reshape(marked.shape), [0, *labels[is_object].tolist()]

    def _jittered(self, box: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A box whose edges have moved, clipped to the image."""
        sides = (box[2:] - box[:2] + 1).repeat(2)
        reach = (self.settings.prompt_jitter * sides).clamp(max=self.settings.prompt_jitter_pixels)
        moved = box + reach * (2 * torch.rand(4) - 1)
        first, second = moved.view(2, 2)
        moved = torch.cat([first.minimum(second), first.maximum(second)])  # a side of one pixel may turn over
        height, width = shape
        return moved.clamp_min(0).minimum(torch.tensor([width - 1, height - 1] * 2))

    def _pack(self, classes: list[int], boxes: list[Tensor], points: list[Tensor]) -> Prompts:
        """One image's objects as a batch; an image without any gets one of class -1."""
        num_points = self.settings.prompt_points
        packed = Prompts(classes=torch.tensor([classes or [-1]]))
        if "box" in self.kinds:
            packed.boxes = torch.stack(boxes or [torch.zeros(4)])[None]
        if "point" in self.kinds:
            stacked = torch.stack(points or [torch.full((num_points, 2), torch.nan)])[None]
            missing = stacked.isnan().any(dim=-1)
            packed.points = stacked.masked_fill(missing[..., None], 0.0)
            packed.labels = torch.where(missing, -1, 1)
        return packed


def known_boxes(prompts: Prompts) -> NDArray[np.float32] | None:
    """Boxes [N, 4] of the objects of one image; None for prompts without boxes."""
    if prompts.boxes is None:
        return None
    boxes: NDArray[np.float32] = prompts.boxes[prompts.classes >= 0].numpy()
    return boxes


def stack_prompts(prompts: Sequence[Prompts]) -> Prompts:
    """Prompts of single images as those of a batch, filled up with objects of class -1.

    Args:
        prompts: at least one, all of the same kinds.

    Returns:
        B is their number, N the largest of theirs, P the largest number of points.
    """
    num_objects = max(part.classes.shape[1] for part in prompts)
    num_points = max(0 if part.points is None else part.points.shape[2] for part in prompts)

    def filled(tensor: Tensor, value: float, *, with_points: bool = False) -> Tensor:
        after = [0, 0] * (tensor.ndim - 2) + [0, num_objects - tensor.shape[1]]
        if with_points:
            after[-3] = num_points - tensor.shape[2]
        return F.pad(tensor, after, value=value)

    stacked = Prompts(classes=torch.cat([filled(part.classes, -1) for part in prompts]))
    if prompts[0].boxes is not None:
        stacked.boxes = torch.cat([filled(p.boxes, 0) for p in prompts if p.boxes is not None])
    if prompts[0].points is not None:
        stacked.points = torch.cat(
            [filled(p.points, 0, with_points=True) for p in prompts if p.points is not None]
        )
        stacked.labels = torch.cat(
            [filled(p.labels, -1, with_points=True) for p in prompts if p.labels is not None]
        )
    return stacked


def _box(pixels: NDArray[np.bool_]) -> Tensor:
    """Left, top, right, bottom of an object, float32 [4]."""
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    return torch.tensor([columns[0], rows[0], columns[-1], rows[-1]], dtype=torch.float32)


def _random_points(pixels: NDArray[np.bool_], num_points: int) -> Tensor:
    """x, y of pixels of an object, [P, 2]; a small object may get one of them twice."""
    places = np.argwhere(pixels)
    chosen = torch.randint(len(places), (num_points,)).numpy()
    return torch.from_numpy(places[chosen, ::-1].astype(np.float32))


def deepest_points(pixels: NDArray[np.bool_], num_points: int) -> Tensor:
    """x, y of the pixels that lie farthest from the rim and from each other.

    Args:
        pixels: [H, W], at least one.
        num_points: P.

    Returns:
        float32 [P, 2]; not a number where there are fewer pixels than points.
    """
    from scipy import ndimage

    inside = np.pad(pixels, 1)
    points = np.full((num_points, 2), np.nan, np.float32)
    for index in range(min(num_points, int(pixels.sum()))):
        row, column = np.unravel_index(ndimage.distance_transform_edt(inside).argmax(), inside.shape)
        points[index] = column - 1, row - 1
        inside[row, column] = False
    return torch.from_numpy(points)
