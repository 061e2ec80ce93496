"""Every data set is claimed by the format that it is in, and by no other but the folders of pairs."""

from __future__ import annotations

import pytest

from segtune.data import FORMATS, files
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import SettingsError
from tests import trees

GENERAL = "folder"
TREES = {
    "cityscapes": trees.cityscapes,
    "cityscapes coarse": lambda root: trees.cityscapes(root, kind="gtCoarse"),
    "cityscapes train ids": lambda root: trees.cityscapes(root, train_ids=True),
    "voc": trees.voc,
    "voc of one's own": lambda root: trees.voc(root, year="leaves"),
    "folder like voc without lists": lambda root: trees.voc(root, lists=False) / "VOCdevkit" / "VOC2012",
    "coco": trees.coco,
    "coco flat": lambda root: trees.coco(root, images="."),
    "coco by split": lambda root: trees.coco(root, images="train", file="train/_annotations.coco.json"),
    "coco with annotations": lambda root: trees.coco(root, file="annotations/instances_train.json"),
    "gta5": trees.gta5,
    "gta5 without split": lambda root: trees.gta5(root, split=False),
    "labelme": trees.labelme,
    "labelme by split": lambda root: trees.labelme(root / "train").parent,
    "crackforest": trees.crackforest,
    "crackforest flat": lambda root: trees.crackforest(root, flat=True),
    "loveda": trees.loveda,
    "potsdam": trees.potsdam,
    "potsdam crops": lambda root: trees.crops(root, ["2_10", "2_11"], range(7)),
    "vaihingen": trees.vaihingen,
    "vaihingen crops": lambda root: trees.crops(root, ["area1", "area3"], range(7)),
    "folder of crops": lambda root: trees.crops(root, ["a", "b"], range(7)),
    "hf_dataset saved": trees.saved_dataset,
    "hf_dataset parquet": trees.parquet,
    "geotiff": trees.geotiff,
    "folder": trees.folder,
    "manifest": trees.manifest,
}
REAL = {
    "camvid": "folder",
    "cvc612": "manifest",
    "epfl_roads": "folder",
    "brats2013": None,
    "hippocampus": None,
    "formats": None,
    "formats/cityscapes": "cityscapes",
    "formats/coco": "coco",
    "formats/gta5": "gta5",
    "formats/jpeg_masks": "folder",
    "formats/labelme": "labelme",
    "formats/labelme/data_annotated": "labelme",
    "formats/labelme/data_dataset_voc": "folder",
    "formats/mat": "crackforest",
    "formats/mmseg/pseudo_cityscapes_dataset": "cityscapes",
    "formats/mmseg/pseudo_potsdam_dataset": "potsdam",
    "formats/mmseg/pseudo_vaihingen_dataset": "vaihingen",
    "formats/nifti_mismatch": None,
    "formats/nifti_orientation": None,
    "formats/tiff_pairs": "folder",
    "formats/voc_rgb": "folder",
}
PLANE = (
    "cityscapes",
    "voc",
    "coco",
    "crackforest",
    "labelme",
    "loveda",
    "potsdam",
    "vaihingen",
    "gta5",
    "hf_dataset",
    "manifest",
    "geotiff",
    "folder",
)
"""Formats of flat images."""


def claims(root):
    return [name for name in FORMATS if name in PLANE and FORMATS.load(name)().detect(root) is not None]


@pytest.mark.parametrize("name", TREES)
def test_a_generated_tree_has_one_owner(tmp_path, name):
    owner = name.split()[0]
    found = claims(TREES[name](tmp_path / "data"))
    assert found[0] == owner and set(found) <= {owner, GENERAL}


@pytest.mark.parametrize("name", REAL)
def test_a_real_folder_has_one_owner(shared_data, name):
    found = claims(shared_data / name)
    if REAL[name] is None:
        assert set(found) <= {GENERAL}
    else:
        assert found[0] == REAL[name] and set(found) <= {REAL[name], GENERAL}


def test_every_flat_format_has_a_tree():
    assert {name.split()[0] for name in TREES} == set(PLANE) <= set(FORMATS)


@pytest.mark.parametrize("name", PLANE)
def test_a_format_claims_nothing_of_empty_or_foreign_folders(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "note.txt").write_text("nothing")
    (tmp_path / "a" / "package.json").write_text('{"name": "x", "images": [1], "shapes": 2}')
    (tmp_path / "a" / "b.json").write_text("[1, 2]")
    format = FORMATS.load(name)()
    assert [format.detect(path) for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b.json")] == [
        None
    ] * 3


@pytest.mark.parametrize("name", PLANE)
def test_options_of_another_format_are_refused(tmp_path, name):
    root = next(make for title, make in TREES.items() if title.split()[0] == name)(tmp_path / "data")
    with pytest.raises(SettingsError, match=rf"no such option of the format {name}"):
        open_data(root, DataSettings(options={"no_such": 1}))


@pytest.mark.parametrize(
    "name", [n for n in TREES if n.split()[0] not in ("folder", "manifest", "hf_dataset", "geotiff")]
)
def test_opening_a_known_format_decodes_next_to_nothing(tmp_path, monkeypatch, name):
    """One file at most: to tell GTA5 by its colours, or placeholders in Cityscapes' test split."""
    root = TREES[name](tmp_path / "data")
    opened = set()
    real = files._open
    monkeypatch.setattr(files, "_open", lambda path, *rest: opened.add(path) or real(path, *rest))
    open_data(root)
    masks = [
        path for path in opened if not any(word in path.as_posix() for word in ("images/", "leftImg8bit"))
    ]
    if name != "voc of one's own":
        assert len(masks) <= 1, masks
