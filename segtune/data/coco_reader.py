"""Draws the masks of COCO files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segtune.data.base import Image, Mask, Origin, Sample
from segtune.data.channels import ChannelRule
from segtune.data.coco_file import CocoObject
from segtune.data.files import PLAIN, image_size, read_image
from segtune.data.regions import Region
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX


@dataclass(frozen=True)
class Drawing:
    """What makes one mask."""

    file: int
    """Place of the annotation file."""
    size: tuple[int, int] | None
    objects: Sequence[CocoObject]


@dataclass(frozen=True, kw_only=True)
class CocoReader:
    """Draws the masks of COCO files."""

    drawings: Mapping[str, Drawing]
    """By the sample's name."""
    labels: Sequence[Mapping[object, int]]
    """For each file: category id -> class."""
    channels: ChannelRule = PLAIN

    def origin(self, sample: Sample) -> Origin:
        """The image file, and the objects drawn on it."""
        drawing = self.drawings[sample.name]
        drawn = hashlib.blake2b(digest_size=16)
        for thing in drawing.objects:
            label = self.labels[drawing.file][thing.category]
            drawn.update(f"{label} {thing.crowd} {thing.runs_size} {len(thing.polygons)}".encode())
            for points in thing.polygons:
                drawn.update(f" {points.shape}".encode() + points.tobytes())
            if thing.runs is not None:
                drawn.update(str(thing.runs).encode())
        return Origin((sample.image,), f"coco {self.channels} {drawing.size} {drawn.hexdigest()}")

    def image(self, sample: Sample) -> Image:
        """[H, W, C]."""
        return read_image(sample.image, self.channels)

    def mask(self, sample: Sample) -> Mask:
        """[H, W] class map.

        Raises:
            DataError: run lengths do not fit the image.
        """
        size, regions = self._regions(sample)
        mask = np.zeros(size, np.uint8)
        for region, label in regions:
            region.paint(mask, label)
        return mask

    def instances(self, sample: Sample) -> NDArray[np.int32]:
        """[H, W] the number of the object that is seen, from 1 on; 0 in the background and in crowds.

        Raises:
            DataError: run lengths do not fit the image.
        """
        size, regions = self._regions(sample)
        numbers = np.zeros(size, np.int32)
        for number, (region, label) in enumerate(regions, start=1):
            region.paint(numbers, 0 if label == IGNORE_INDEX else number)
        return numbers

    def _regions(self, sample: Sample) -> tuple[tuple[int, int], list[tuple[Region, int]]]:
        """Height and width, and the regions with their classes from the lowest to the uppermost."""
        drawing = self.drawings[sample.name]
        height, width = drawing.size or image_size(sample.image)
        labels = self.labels[drawing.file]
        regions = []
        for thing in drawing.objects:
            try:
                region = thing.region(height, width)
            except ValueError as error:
                raise DataError(
                    f"{sample.mask}: annotation {thing.id!r} of {sample.image.name}: {error}",
                    hint="export the annotations again, or leave the image out with data.exclude",
                ) from None
            # What counts as background hides nothing.
            if label := labels[thing.category]:
                order = (not thing.crowd, -int(region.inside.sum()))
                regions.append((order, region, IGNORE_INDEX if thing.crowd else label))
        ordered = sorted(regions, key=lambda item: item[0])
        return (height, width), [(region, label) for _, region, label in ordered]
