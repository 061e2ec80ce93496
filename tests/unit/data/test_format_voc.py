from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segtune.data import files
from segtune.data.open import open_data
from segtune.data.palette import VOC
from segtune.data.settings import DataSettings
from segtune.errors import DataError
from tests import trees


def test_the_devkit_is_read_without_opening_a_mask(tmp_path, monkeypatch):
    trees.voc(tmp_path)
    opened = []
    real = files._open
    monkeypatch.setattr(files, "_open", lambda path, *rest: opened.append(path) or real(path, *rest))
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        index = open_data(root)
        assert index.format == "voc" and index.classes.num_classes == 21
        assert index.split_sizes == {"train": 3, "val": 2}
        assert [sample.name for sample in index.samples][:1] == ["2007_000000"]
    assert not [path for path in opened if path.suffix == ".png"]
    for sample in index.samples:
        assert (index.reader.mask(sample) == np.asarray(Image.open(sample.mask))).all()


def test_the_palette_of_the_classes_is_that_of_the_files():
    assert list(VOC.colours) == trees.voc_palette()[:21]


def test_masks_in_true_colour_and_in_grey(tmp_path):
    tree = trees.voc(tmp_path) / "VOCdevkit" / "VOC2012"
    trees.save_mask(
        tree / "SegmentationClass" / "2007_000000.png",
        trees.colourise(trees.grid([0, 255, 1, 15]), trees.voc_palette()),
    )
    trees.save_mask(tree / "SegmentationClass" / "2007_000001.png", trees.grid([0, 255, 2, 15]))
    index = open_data(tmp_path)
    assert (index.reader.mask(index.samples[0]) == trees.grid([0, 255, 1, 15])).all()
    assert (index.reader.mask(index.samples[1]) == trees.grid([0, 255, 2, 15])).all()


def test_augmented_masks(tmp_path):
    tree = trees.voc(tmp_path) / "VOCdevkit" / "VOC2012"
    (tree / "SegmentationClass").rename(tree / "SegmentationClassAug")
    with pytest.raises(DataError, match=r"there is no SegmentationClass/\n.*SegmentationClassAug"):
        open_data(tmp_path)
    settings = DataSettings(options={"masks": "SegmentationClassAug"})
    assert len(open_data(tmp_path, settings).samples) == 5
    with pytest.raises(DataError, match="no folder beside"):
        open_data(tmp_path, DataSettings(options={"masks": "../../etc"}))


def test_a_test_list_whose_masks_are_not_published(tmp_path):
    tree = trees.voc(tmp_path) / "VOCdevkit" / "VOC2012"
    (tree / "ImageSets" / "Segmentation" / "test.txt").write_text("2012_000001\n2012_000002\n")
    index = open_data(tmp_path)
    assert index.findings == () and index.split_sizes == {"train": 3, "val": 2}


def test_other_trees_name_their_classes_or_are_looked_at(tmp_path):
    root = trees.voc(tmp_path, year="leaves")
    tree = root / "VOCdevkit" / "leaves"
    assert open_data(root).details["masks"] == "palette"
    (tree / "class_names.txt").write_text("__ignore__\n" + "\n".join(f"c{i}" for i in range(16)))
    index = open_data(root)
    assert index.classes.names == tuple(f"c{i}" for i in range(16))
    assert (index.reader.mask(index.samples[0]) == trees.grid([0, 255, 1, 15])).all()
    (tree / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\n"
        + "".join(f"l{i}:{r},{g},{b}::\n" for i, (r, g, b) in reversed([*enumerate(VOC.colours)]))
    )
    index = open_data(root)
    assert index.classes.names[0] == "l20" and index.classes.palette[20] == (0, 0, 0)
    assert (index.reader.mask(index.samples[0]) == [[20, 255, 19, 5][i // 8] for i in range(32)]).all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labelmap.txt", "cat:300,0,0::\n", "is no class"),
        ("labelmap.txt", "cat\n", "is no class"),
        ("labelmap.txt", "cat:1,0,0::\ndog:1,0,0::\n", "the same colour"),
        ("labelmap.txt", "cat:1,0,0::\ncat:2,0,0::\n", "'cat' stands twice"),
        ("class_names.txt", "cat\n", "1 classes"),
        ("ImageSets/Segmentation/train.txt", "../../../secret\n", "no name of an image"),
        ("ImageSets/Segmentation/train.txt", "/etc/passwd\n", "no name of an image"),
    ],
)
def test_mistakes_in_its_own_files(tmp_path, name, text, message):
    tree = trees.voc(tmp_path, year="mine") / "VOCdevkit" / "mine"
    (tree / name).write_text(text)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path)


def test_names_that_do_not_exist_and_names_in_two_lists(tmp_path):
    tree = trees.voc(tmp_path) / "VOCdevkit" / "VOC2012"
    with (tree / "ImageSets" / "Segmentation" / "val.txt").open("a") as file:
        file.write("2007_999999\n2007_000000\n")
    codes = {finding.code: finding for finding in open_data(tmp_path).findings}
    assert codes["missing-file"].files == ("VOCdevkit/VOC2012/JPEGImages/2007_999999",)
    assert codes["sample-in-two-splits"].files == ("2007_000000",)


def test_two_years_side_by_side(tmp_path):
    trees.voc(tmp_path)
    trees.voc(tmp_path, year="VOC2007")
    index = open_data(tmp_path)
    assert len(index.samples) == 10 and index.samples[0].name == "VOC2007/2007_000000"
