"""Data formats by name, in the order in which they are tried. A new format is one file and one line."""

from __future__ import annotations

from pathlib import Path

from segtune.registry import Registry

HUB = "hf:"
"""Beginning of the names of data sets on the hub."""

FORMATS = Registry(
    "format",
    {
        "cityscapes": "segtune.data.cityscapes:Cityscapes",
        "voc": "segtune.data.voc:Voc",
        "coco": "segtune.data.coco:Coco",
        "crackforest": "segtune.data.crackforest:CrackForest",
        "labelme": "segtune.data.labelme:Labelme",
        "loveda": "segtune.data.loveda:LoveDA",
        "potsdam": "segtune.data.potsdam:Potsdam",
        "vaihingen": "segtune.data.vaihingen:Vaihingen",
        "gta5": "segtune.data.gta5:Gta5",
        "hf_dataset": "segtune.data.hf_dataset:HfDataset",
        "manifest": "segtune.data.manifest:Manifest",
        "geotiff": "segtune.data.geotiff:GeoTiff",
        "folder": "segtune.data.folder:Folder",
        "msd": "segtune.data.msd:MSD",
        "brats": "segtune.data.brats:BraTS",
        "nifti": "segtune.data.nifti_pairs:NiftiPairs",
    },
)


def is_hub(path: Path) -> bool:
    """Whether a path stands for a data set of the hub."""
    return path.as_posix().startswith(HUB)


def is_there(path: Path) -> bool:
    """Whether there is something at a path, or it stands for a data set of the hub."""
    return is_hub(path) or path.exists()
