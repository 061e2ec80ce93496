"""Cityscapes in its official tree: leftImg8bit, and gtFine or gtCoarse.

    leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png

The 19 classes are made from the label numbers while reading; files `labelTrainIds`, where every frame has
one, are used instead. Nothing is written. The city is the group; the splits are the folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from segtune.data.assemble import assemble
from segtune.data.base import DataIndex, Sample
from segtune.data.files import read_mask_file
from segtune.data.matching import by_key, list_files, match, subfolders
from segtune.data.settings import DataSettings
from segtune.data.street import street_coding
from segtune.errors import DataError
from segtune.settings import Settings
from segtune.types import IGNORE_INDEX

IMAGES = "leftImg8bit"
ANNOTATIONS = {"fine": "gtFine", "coarse": "gtCoarse"}
SPLIT_FOLDERS = {"train": "train", "train_extra": "train", "val": "val", "test": "test"}
KINDS = ("labelIds", "labelTrainIds")


class CityscapesSettings(Settings):
    """Which annotations and which classes."""

    annotations: Literal["auto", "fine", "coarse"] = Field(
        "auto", description="gtFine or gtCoarse; auto: gtFine where it is there"
    )
    classes: Literal[19, 20, "19+void", 34] = Field(
        19, description="19; 20: a last one without pixels; 19+void: all else is a class; 34: every label"
    )


class Cityscapes:
    """The format of Cityscapes."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        there = [name for name in ANNOTATIONS.values() if (root / name).is_dir()]
        if not (root / IMAGES).is_dir() or not there:
            return None
        return f"there are {IMAGES}/ and {' and '.join(f'{name}/' for name in there)}"

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Pairs frames with their masks; no mask is opened but one of the test split.

        Raises:
            DataError: no frame has a mask.
        """
        options = CityscapesSettings.model_validate(settings.options)
        wanted = options.annotations
        if wanted == "auto":
            wanted = "fine" if (root / ANNOTATIONS["fine"]).is_dir() else "coarse"
        folder = ANNOTATIONS[wanted]
        # Frames of splits that have no folder of masks, such as train_extra beside gtFine, are not asked for.
        splits = [name for name in SPLIT_FOLDERS if (root / folder / name).is_dir()]
        images = by_key(_frames(root / IMAGES, splits, f"_{IMAGES}"))
        masks = {kind: by_key(_frames(root / folder, splits, f"_{folder}_{kind}")) for kind in KINDS}
        train_ids = options.classes != 34 and all(key in masks["labelTrainIds"] for key in images)
        used = masks["labelTrainIds" if train_ids else "labelIds"]
        keys, findings = match(root, images, used)
        if not keys:
            raise DataError(
                f"{root}: {len(images)} frames in {IMAGES}/ and {len(used)} masks in {folder}/, "
                "but no two of the same name",
                hint="names are CITY_000000_000019_leftImg8bit.png and "
                f"CITY_000000_000019_{folder}_labelIds.png",
            )
        coding = street_coding(
            f"masks of Cityscapes ({'labelTrainIds' if train_ids else 'labelIds'})",
            "all" if options.classes == 34 else options.classes,
            train_ids=train_ids,
        )
        samples = [_sample(key, images[key], used[key]) for key in keys]
        evidence = [f"{len(keys)} frames with {folder}, the city is the group"]
        if _withheld(samples, train_ids=train_ids):
            samples = [sample for sample in samples if sample.split != "test"]
            evidence.append("the test split is left out: its masks are ignored all over (not published)")
        return assemble(
            root,
            format="cityscapes",
            samples=samples,
            settings=settings,
            evidence=evidence,
            findings=findings,
            known=coding,
        )


def _frames(folder: Path, splits: Sequence[str], ending: str) -> list[tuple[str, Path]]:
    """Split folder and name of each frame, with its file."""
    return [
        (f"{split}/{path.stem.removesuffix(ending)}", path)
        for split in splits
        for city in subfolders(folder / split)
        for path in list_files(city)
        if path.stem.endswith(ending)
    ]


def _sample(key: str, image: Path, mask: Path) -> Sample:
    split, _, name = key.partition("/")
    return Sample(name=name, image=image, mask=mask, split=SPLIT_FOLDERS[split], group=image.parent.name)


def _withheld(samples: Sequence[Sample], *, train_ids: bool) -> bool:
    """Whether the masks of the test split are placeholders, judged by the first."""
    first = next((sample.mask for sample in samples if sample.split == "test"), None)
    if first is None:
        return False
    try:
        mask, _ = street_coding("masks", 19, train_ids=train_ids).coding.decode(read_mask_file(first))
    except DataError:  # the data check names it
        return False
    return bool((mask == IGNORE_INDEX).all())
