"""Data formats by name, in the order in which they are tried. A new format is one file and one line."""

from __future__ import annotations

from segtune.registry import Registry

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
        "manifest": "segtune.data.manifest:Manifest",
        "folder": "segtune.data.folder:Folder",
    },
)
