"""LoveDA: aerial photos of towns and country, seven classes of land cover.

    Train/Urban/images_png/1366.png   Train/Urban/masks_png/1366.png
    Val/Rural/images_png/...          Test/Rural/images_png/... (without masks, left out)

Pixels of 0 have no data and are ignored; 1 to 7 are the classes. Folders img_dir and ann_dir with such masks
look like any others; data.format=loveda reads them too.
"""

from __future__ import annotations

from pathlib import Path

from segtune.data.assemble import assemble
from segtune.data.base import Classes, Colour, DataIndex, Sample
from segtune.data.known import KnownCoding
from segtune.data.matching import files_by_place, list_files, match, subfolders
from segtune.data.settings import DataSettings
from segtune.data.split import SPLIT_WORDS
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX

IMAGES, MASKS = "images_png", "masks_png"
AREAS = ("Urban", "Rural")
CLASSES: dict[str, Colour] = {
    "background": (255, 255, 255),
    "building": (255, 0, 0),
    "road": (255, 255, 0),
    "water": (0, 0, 255),
    "barren": (159, 129, 183),
    "forest": (0, 255, 0),
    "agriculture": (255, 195, 128),
}
CODING = KnownCoding(
    title="masks of LoveDA",
    classes=Classes(names=tuple(CLASSES), palette=tuple(CLASSES.values())),
    values={0: IGNORE_INDEX, 1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, IGNORE_INDEX: IGNORE_INDEX},
)


class LoveDA:
    """The format of LoveDA."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        places = [f"{folder.name}/{area}/{MASKS}/" for folder, area in _areas(root)]
        return f"there are {', '.join(places)}" if places else None

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Pairs images with masks; no mask is opened.

        Raises:
            DataError: no image has a mask.
        """
        images: dict[str, Path] = {}
        masks: dict[str, Path] = {}
        for folder, area in _areas(root):
            for files, kind in ((images, IMAGES), (masks, MASKS)):
                for path in list_files(folder / area / kind):
                    files[f"{folder.name}/{area}/{path.stem}"] = path
        if not masks:
            images, masks = files_by_place(root / "img_dir"), files_by_place(root / "ann_dir")
        keys, findings = match(root, images, masks)
        if not keys:
            raise DataError(
                f"{root}: {len(images)} images and {len(masks)} masks, but no two of the same name",
                hint=f"they lie in Train/{AREAS[0]}/{IMAGES}/ and Train/{AREAS[0]}/{MASKS}/",
            )
        samples = []
        for key in keys:
            first, _, rest = key.partition("/")
            split = SPLIT_WORDS.get(first.lower()) if rest else None
            name = rest if split is not None else key
            samples.append(Sample(name=name, image=images[key], mask=masks[key], split=split))
        return assemble(
            root,
            format="loveda",
            samples=samples,
            settings=settings,
            evidence=[f"{len(samples)} images with masks"],
            findings=findings,
            known=CODING,
        )


def _areas(root: Path) -> list[tuple[Path, str]]:
    """Split folder and area of each folder of masks."""
    return [
        (split, area)
        for split in subfolders(root)
        if split.name.lower() in SPLIT_WORDS
        for area in AREAS
        if (split / area / MASKS).is_dir() and (split / area / IMAGES).is_dir()
    ]
