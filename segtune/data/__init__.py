"""Data formats by name, in the order in which they are tried. A new format is one file and one line."""

from __future__ import annotations

from segtune.registry import Registry

FORMATS = Registry(
    "format",
    {
        "manifest": "segtune.data.manifest:Manifest",
        "folder": "segtune.data.folder:Folder",
        "msd": "segtune.data.msd:MSD",
        "brats": "segtune.data.brats:BraTS",
        "nifti": "segtune.data.nifti_pairs:NiftiPairs",
    },
)
