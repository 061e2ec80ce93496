"""Draws the masks of COCO files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segtune.data.base import Image, Mask, Sample
from segtune.data.channels import ChannelRule
from segtune.data.coco_file import CocoObject
from segtune.data.files import PLAIN, image_size, read_image
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

    def image(self, sample: Sample) -> Image:
        """[H, W, C]."""
        return read_image(sample.image, self.channels)

    def mask(self, sample: Sample) -> Mask:
        """[H, W] class map.

        Raises:
            DataError: run lengths do not fit the image.
        """
        drawing = self.drawings[sample.name]
        height, width = drawing.size or image_size(sample.image)
        labels = self.labels[drawing.file]
        mask = np.zeros((height, width), np.uint8)
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
        for _, region, label in sorted(regions, key=lambda item: item[0]):
            region.paint(mask, label)
        return mask
