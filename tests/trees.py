"""Small data sets in the published layouts, written by the tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segtune.data.street import LABELS, PLATE

HEIGHT, WIDTH = 24, 32


def photo(path: Path, seed: int, height: int = HEIGHT, width: int = WIDTH) -> None:
    """A random picture that is no near duplicate of another seed's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


def grid(labels: Any, height: int = HEIGHT, width: int = WIDTH) -> Any:
    """A mask [H, W] of upright stripes, one for each label."""
    labels = np.asarray(labels, np.uint8)
    return np.repeat(labels[np.arange(width) * len(labels) // width][None], height, axis=0)


def save_mask(path: Path, array: Any, palette: Any = None) -> None:
    """Writes indices (with a palette, where given) or colours as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    if palette is not None:
        image.putpalette([channel for colour in palette for channel in colour])
    image.save(path)


def colourise(mask: Any, palette: Any) -> Any:
    """Colours [H, W, 3] of indices [H, W]."""
    return np.asarray(palette, np.uint8)[mask]


STREET_PALETTE = [*(label.colour for label in LABELS), PLATE.colour]


def cityscapes(root: Path, *, kind: str = "gtFine", train_ids: bool = False) -> Path:
    for seed, (split, city) in enumerate(
        [("train", "aachen"), ("train", "bochum"), ("val", "lindau"), ("test", "berlin")]
    ):
        name = f"{city}_000000_00001{seed}"
        photo(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", seed)
        labels = [0, 1, 3] if split == "test" else [7, 8, 11, 26 + seed, 33, 4, 0]
        stem = root / kind / split / city / f"{name}_{kind}"
        save_mask(Path(f"{stem}_labelIds.png"), grid(labels))
        save_mask(Path(f"{stem}_color.png"), colourise(grid(labels), STREET_PALETTE))
        if train_ids:
            save_mask(Path(f"{stem}_labelTrainIds.png"), grid([0, 1, 2, 13, 18, 255, 255]))
    return root


VOC_COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]


def voc_palette() -> Any:
    """The 256 colours of the masks of PASCAL VOC, from the bits of the index."""
    colours = []
    for index in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        colours.append(tuple(channels))
    return colours


def voc(root: Path, *, year: str = "VOC2012", lists: bool = True) -> Path:
    tree = root / "VOCdevkit" / year
    names = [f"2007_00000{i}" for i in range(5)]
    for seed, name in enumerate(names):
        photo(tree / "JPEGImages" / f"{name}.jpg", seed)
        save_mask(
            tree / "SegmentationClass" / f"{name}.png", grid([0, 255, seed + 1, 15]), palette=voc_palette()
        )
        save_mask(tree / "SegmentationObject" / f"{name}.png", grid([0, 255, 1, 2]), palette=voc_palette())
    if lists:
        folder = tree / "ImageSets" / "Segmentation"
        folder.mkdir(parents=True)
        (folder / "train.txt").write_text("\n".join(names[:3]) + "\n")
        (folder / "val.txt").write_text("\n".join(names[3:]) + "\n")
        (folder / "trainval.txt").write_text("\n".join(names) + "\n")
    return root


def coco(root: Path, *, images: str = "images", file: str = "annotations.json", **changes: Any) -> Path:
    """Three images; a large square below a small one, a hole by run lengths, a crowd."""
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(3)],
        "categories": [
            {"id": 7, "name": "dog", "supercategory": "animal"},
            {"id": 3, "name": "cat", "supercategory": "animal"},
            {"id": 90, "name": "cup", "supercategory": "kitchen"},
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 3, "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6]]},
            {"id": 2, "image_id": 0, "category_id": 7, "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]},
            {
                "id": 3,
                "image_id": 1,
                "category_id": 90,
                "iscrowd": 0,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT, HEIGHT, HEIGHT * (WIDTH - 2)]},
            },
            {
                "id": 4,
                "image_id": 1,
                "category_id": 3,
                "iscrowd": 1,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 3 * HEIGHT, HEIGHT * (WIDTH - 3)]},
            },
        ],
    } | changes
    for seed, image in enumerate(content["images"]):
        if isinstance(image, dict) and ".." not in str(image.get("file_name", "..")):
            photo(root / images / image["file_name"], seed)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root


def gta5(root: Path, *, split: bool = True, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Four frames; the last mask is in true colour."""
    palette = [*STREET_PALETTE, *[(0, 0, 0)] * (256 - len(STREET_PALETTE))]
    for seed in range(4):
        name = f"{seed + 1:05d}"
        photo(root / "images" / f"{name}.png", seed, height, width)
        mask = grid([0, 7, 8, 11, 21, 22, 23, 26 + seed, 34], height, width)
        if seed == 3:
            save_mask(root / "labels" / f"{name}.png", colourise(mask, palette))
        else:
            save_mask(root / "labels" / f"{name}.png", mask, palette=palette)
    if split:
        from scipy.io import savemat

        ids = {"trainIds": [[1], [2]], "valIds": [[3]], "testIds": [[4]]}
        savemat(root / "split.mat", {name: np.array(value) for name, value in ids.items()})
    return root


def shape(label: Any, points: Any, kind: str | None = "polygon", **more: Any) -> Any:
    """A shape as labelme writes it."""
    return {"label": label, "points": points, "shape_type": kind, "flags": {}, **more}


def labelme(root: Path, **changes: Any) -> Path:
    """Three images; a dog below a cat with an ignored pixel."""
    shapes = [
        shape("dog", [[3, 2], [20, 2], [20, 10], [3, 10]]),
        shape("cat", [[5, 4], [7, 6]], "rectangle"),
        shape("__ignore__", [[6, 5], [6, 5]], "rectangle"),
    ]
    for seed in range(3):
        photo(root / f"{seed}.png", seed)
        content = {
            "version": "5.0",
            "shapes": shapes,
            "imagePath": f"{seed}.png",
            "imageData": None,
            "imageHeight": HEIGHT,
            "imageWidth": WIDTH,
        }
        (root / f"{seed}.json").write_text(json.dumps(content | changes))
    return root


def loveda(root: Path) -> Path:
    for seed, place in enumerate(["Train/Urban", "Train/Rural", "Val/Urban", "Test/Rural"]):
        photo(root / place / "images_png" / f"{seed}.png", seed)
        if not place.startswith("Test"):
            save_mask(root / place / "masks_png" / f"{seed}.png", grid([0, 1, 2, 3, 4, 5, 6, 7]))
    return root


ISPRS_COLOURS = [
    (0, 0, 0),
    (255, 255, 255),
    (0, 0, 255),
    (0, 255, 255),
    (0, 255, 0),
    (255, 255, 0),
    (255, 0, 0),
]


def potsdam(root: Path) -> Path:
    for seed, tile in enumerate(["2_10", "6_7", "7_13"]):
        name = f"top_potsdam_{tile}"
        for kind in ("RGB", "IRRG"):
            photo(root / f"Ortho_{kind}" / f"{name}_{kind}.tif", seed + 10 * (kind == "RGB"))
        whole = colourise(grid([1, 2, 3, 4, 5, 6]), ISPRS_COLOURS)
        save_mask(root / "5_Labels_all" / f"{name}_label.tif", whole)
        eroded = colourise(grid([0, 1, 2, 3, 4, 5, 6, 0]), ISPRS_COLOURS)
        save_mask(root / "5_Labels_all_noBoundary" / f"{name}_label_noBoundary.tif", eroded)
    return root


def vaihingen(root: Path) -> Path:
    for seed, tile in enumerate(["area1", "area11", "area38"]):
        photo(root / "top" / f"top_mosaic_09cm_{tile}.tif", seed)
        whole = colourise(grid([1, 2, 3, 4, 5, 6]), ISPRS_COLOURS)
        save_mask(root / "gts_for_participants" / f"top_mosaic_09cm_{tile}.tif", whole)
        eroded = colourise(grid([0, 1, 2, 3, 4, 5, 6, 0]), ISPRS_COLOURS)
        save_mask(root / "eroded" / f"top_mosaic_09cm_{tile}_noBoundary.tif", eroded)
    return root


def crops(root: Path, tiles: Any, labels: Any, *, splits: bool = True) -> Path:
    """Tiles cut into crops: img_dir and ann_dir."""
    for seed, tile in enumerate(tiles):
        place = ("train/" if seed < len(tiles) - 1 else "val/") if splits else ""
        photo(root / f"img_dir/{place}{tile}_0_0_32_24.png", seed)
        save_mask(root / f"ann_dir/{place}{tile}_0_0_32_24.png", grid(labels))
    return root


def crackforest(root: Path, *, flat: bool = False) -> Path:
    from scipy.io import savemat

    for seed in range(3):
        folder = root if flat else root / "groundTruth"
        photo((root if flat else root / "image") / f"{seed:03d}.jpg", seed)
        folder.mkdir(parents=True, exist_ok=True)
        mask = grid([1, 2, 1])
        savemat(folder / f"{seed:03d}.mat", {"groundTruth": {"Segmentation": mask, "Boundaries": mask > 1}})
    return root


def folder(root: Path) -> Path:
    for seed in range(3):
        photo(root / "images" / f"{seed:05d}.png", seed)
        save_mask(root / "masks" / f"{seed:05d}.png", grid([0, 1, 2]))
    return root


def geotiff(root: Path) -> Path:
    """Images and masks with coordinates."""
    import rasterio

    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)}
    random = np.random.default_rng(0)
    for seed in range(3):
        image = random.integers(0, 255, (3, HEIGHT, WIDTH), dtype=np.uint8)
        for name, array in (("images", image), ("masks", grid([0, 1, 2])[None])):
            (root / name).mkdir(parents=True, exist_ok=True)
            size = {"height": HEIGHT, "width": WIDTH, "count": len(array), "dtype": "uint8"}
            with rasterio.open(root / name / f"{seed}.tif", "w", driver="GTiff", **size, **place) as file:
                file.write(array)
    return root


def manifest(root: Path) -> Path:
    for seed in range(3):
        photo(root / f"{seed}.png", seed)
        save_mask(root / "m" / f"{seed}.png", grid([0, 1, 2]))
    (root / "list.csv").write_text("image,mask\n" + "".join(f"{i}.png,m/{i}.png\n" for i in range(3)))
    return root


def _table() -> Any:
    import datasets

    def picture(array: Any) -> Any:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    random = np.random.default_rng(0)
    rows = {
        "pixel_values": [
            picture(random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)) for _ in range(3)
        ],
        "label": [picture(grid([0, 1, 2, 255])) for _ in range(3)],
        "name": ["a", "b", "c"],
    }
    features = {"pixel_values": datasets.Image(), "label": datasets.Image(), "name": datasets.Value("string")}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def saved_dataset(root: Path, *, splits: bool = True) -> Path:
    """As save_to_disk writes it."""
    import datasets

    table = _table()
    whole = datasets.DatasetDict({"train": table, "validation": table}) if splits else table
    whole.save_to_disk(root)
    return root


def parquet(root: Path) -> Path:
    (root / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        _table().to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root
