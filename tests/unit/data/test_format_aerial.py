"""LoveDA, Potsdam and Vaihingen."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segtune.data import files
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError
from tests import trees

NAMES = ("impervious surface", "building", "low vegetation", "tree", "car", "clutter")
WITH_BORDER = [255, 0, 1, 2, 3, 4, 5, 255]


def with_options(**options):
    return DataSettings(options=options, val_fraction=0)


@pytest.fixture
def opened(monkeypatch):
    """Files that are opened while a test runs."""
    paths = []
    real = files._open
    monkeypatch.setattr(files, "_open", lambda path, *rest: paths.append(path) or real(path, *rest))
    return paths


def test_loveda(tmp_path, opened):
    index = open_data(trees.loveda(tmp_path))
    assert index.format == "loveda" and not [path for path in opened if "masks" in path.parent.name]
    assert index.classes.names[1:3] == ("building", "road") and index.classes.num_classes == 7
    assert [(s.name, s.split) for s in index.samples] == [
        ("Urban/0", "train"),
        ("Rural/1", "train"),
        ("Urban/2", "val"),
    ]
    expected = trees.grid([255, 0, 1, 2, 3, 4, 5, 6])
    assert all((index.reader.mask(sample) == expected).all() for sample in index.samples)
    assert len(open_data(tmp_path, DataSettings(include=("Urban/*",))).samples) == 2


def test_loveda_in_other_folders_when_it_is_named(tmp_path):
    trees.crops(tmp_path, ["a", "b", "c"], range(8))
    assert open_data(tmp_path).format == "folder"
    index = open_data(tmp_path, DataSettings(format="loveda"))
    assert index.classes.num_classes == 7 and index.split_sizes == {"train": 2, "val": 1}
    assert (index.reader.mask(index.samples[0]) == trees.grid([255, 0, 1, 2, 3, 4, 5, 6])).all()


def test_potsdam(tmp_path, opened):
    trees.potsdam(tmp_path)
    index = open_data(tmp_path, with_options())
    assert index.format == "potsdam" and not [path for path in opened if "label" in path.name]
    assert index.classes.names == NAMES
    assert [(s.name, s.split, s.group) for s in index.samples] == [
        ("2_10", "train", "2_10"),
        ("6_7", "train", "6_7"),
        ("7_13", "test", "7_13"),
    ]
    assert (index.reader.mask(index.samples[0]) == trees.grid(WITH_BORDER)).all()
    assert index.samples[0].image.parent.name == "Ortho_RGB"
    other = open_data(tmp_path, with_options(images="IRRG", boundary="with"))
    assert other.samples[0].image.parent.name == "Ortho_IRRG"
    assert (other.reader.mask(other.samples[0]) == trees.grid(range(6))).all()
    with pytest.raises(DataError, match=r"no RGBIR images(.|\n)*RGB"):
        open_data(tmp_path, with_options(images="RGBIR"))


def test_vaihingen(tmp_path, opened):
    trees.vaihingen(tmp_path)
    index = open_data(tmp_path, with_options())
    assert index.format == "vaihingen" and not [path for path in opened if path.parent.name != "top"]
    assert [(s.name, s.split) for s in index.samples] == [
        ("area1", "train"),
        ("area11", "train"),
        ("area38", "test"),
    ]
    assert (index.reader.mask(index.samples[0]) == trees.grid(WITH_BORDER)).all()
    other = open_data(tmp_path, with_options(boundary="with"))
    assert (other.reader.mask(other.samples[0]) == trees.grid(range(6))).all()


@pytest.mark.parametrize(
    ("name", "tiles"), [("potsdam", ["2_10", "3_11"]), ("vaihingen", ["area1", "area3"])]
)
def test_crops(tmp_path, name, tiles):
    trees.crops(tmp_path / "border", tiles, range(7))
    index = open_data(tmp_path / "border")
    assert index.format == name and index.split_sizes == {"train": 1, "val": 1}
    assert [sample.group for sample in index.samples] == tiles
    assert (index.reader.mask(index.samples[0]) == trees.grid([255, 0, 1, 2, 3, 4, 5])).all()
    trees.crops(tmp_path / "plain", tiles, range(6), splits=False)
    index = open_data(tmp_path / "plain", with_options(zero="class"))
    assert index.split_sizes == {"train": 2}
    assert (index.reader.mask(index.samples[0]) == trees.grid(range(6))).all()


def test_names_that_are_no_tile_of_the_city_are_left_to_the_folders(tmp_path):
    assert open_data(trees.crops(tmp_path, ["9_99", "2_10"], range(3))).format == "folder"


@pytest.mark.parametrize("name", ["potsdam", "vaihingen"])
def test_real_crops(shared_data, name):
    root = shared_data / "formats" / "mmseg" / f"pseudo_{name}_dataset"
    index = open_data(root)
    assert index.format == name and index.classes.names == NAMES
    [sample] = index.samples
    with Image.open(sample.mask) as stored:
        expected = np.array([255, 0, 1, 2, 3, 4, 5])[np.asarray(stored)]
    mask = index.reader.mask(sample)
    assert (mask == expected).all()
    # Roofs are red in Potsdam, and so they are in infrared; grass and trees are red in infrared only.
    image = index.reader.image(sample).astype(int)
    redness = [(image[..., 0] - image[..., 2])[mask == label].mean() for label in (0, 1, 2)]
    assert redness[1] > redness[0] + 10 if name == "potsdam" else redness[2] > redness[0] + 10
