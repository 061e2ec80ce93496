from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest

from segtune.data.check import check_data
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError, MissingExtraError, SegtuneError
from tests import trees

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EXPECTED = trees.grid([0, 1, 2, 255])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.parametrize("make", [trees.saved_dataset, trees.parquet])
def test_tables_with_splits(tmp_path, make):
    index = open_data(make(tmp_path / "data"))
    assert index.format == "hf_dataset" and index.split_sizes == {"train": 3, "val": 3}
    assert index.classes.num_classes == 3
    assert any("images from the column 'pixel_values', masks from 'label'" in line for line in index.evidence)
    for sample in index.samples:
        assert (index.reader.mask(sample) == EXPECTED).all()
        assert index.reader.image(sample).shape == (trees.HEIGHT, trees.WIDTH, 3)
    again = pickle.loads(pickle.dumps(index.reader))  # as for a worker
    assert (again.mask(index.samples[0]) == EXPECTED).all()
    assert check_data(index).ok


def test_one_table_is_divided(tmp_path):
    index = open_data(trees.saved_dataset(tmp_path / "data", splits=False))
    assert index.split_sizes == {"train": 1, "val": 1, "test": 1}
    one = trees.parquet(tmp_path / "p") / "data" / "train-00000-of-00001.parquet"
    assert open_data(one).split_sizes == {"train": 2, "val": 1}


def test_columns_are_chosen_or_asked_for(tmp_path):
    root = tmp_path / "data"
    table = datasets.load_from_disk(str(trees.saved_dataset(tmp_path / "first", splits=False)))
    table.rename_columns({"pixel_values": "front", "label": "rear"}).save_to_disk(root)
    with pytest.raises(DataError, match=r"not clear which columns(.|\n)*front \(.*rear"):
        open_data(root)
    index = open_data(root, DataSettings(options={"image": "front"}))
    assert (index.reader.mask(index.samples[0]) == EXPECTED).all()
    with pytest.raises(DataError, match=r"data\.options\.mask='name' is no column of images"):
        open_data(root, DataSettings(options={"mask": "name"}))


def test_plain_bytes_are_images_too(tmp_path):
    table = trees._table().cast_column("label", datasets.Image(decode=False))
    rows = {"image": [], "mask": []}
    for row in table.cast_column("pixel_values", datasets.Image(decode=False)):
        rows["image"].append(row["pixel_values"]["bytes"])
        rows["mask"].append(row["label"]["bytes"])
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "data" / "rows.parquet")
    index = open_data(tmp_path / "data")
    assert (index.reader.mask(index.samples[0]) == EXPECTED).all()


def test_files_outside_of_the_data_set_are_refused(tmp_path):
    trees.photo(tmp_path / "secret.png", 0)
    cell = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": cell, "mask": cell})
    row = {"bytes": None, "path": str(tmp_path / "secret.png")}
    table = datasets.Dataset.from_dict({"image": [row], "mask": [row]}, features=features)
    table.save_to_disk(tmp_path / "data")
    with pytest.raises(DataError, match="outside of the data set"):
        open_data(tmp_path / "data")


def test_a_damaged_image_is_named(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "mask": datasets.Image(decode=False)}
    )
    good = trees._table().cast_column("label", datasets.Image(decode=False))[0]["label"]
    bad = {"bytes": b"junk", "path": None}
    table = datasets.Dataset.from_dict({"image": [bad, good], "mask": [good, good]}, features=features)
    table.save_to_disk(tmp_path / "data")
    errors = [f for f in check_data(tmp_path / "data").findings if f.severity == "error"]
    assert [(e.code, e.files) for e in errors if e.code == "unreadable-file"] == [
        ("unreadable-file", ("rows/000000",))
    ]


@pytest.mark.parametrize("content", [b"", b"PAR1junkPAR1", b"x" * 500])
def test_damaged_tables(tmp_path, content):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(content)
    with pytest.raises(DataError, match="cannot be opened"):
        open_data(tmp_path / "data")


def test_damaged_saved_data_sets(tmp_path):
    root = trees.saved_dataset(tmp_path / "data")
    (root / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../x.arrow"}]}))
    with pytest.raises(DataError, match="cannot be opened"):
        open_data(root)


def test_the_hub_without_a_connection(monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"no route to host\n.*hint: check the name and the connection"):
        open_data("hf:owner/name")
    with pytest.raises(DataError, match="write hf:owner/name"):
        open_data("hf:nobody")


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    whole = datasets.load_from_disk(str(trees.saved_dataset(tmp_path / "data")))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or whole)
    index = open_data("hf:owner/name")
    assert asked == ["owner/name"] and index.split_sizes == {"train": 3, "val": 3}
    assert (index.reader.mask(index.samples[0]) == EXPECTED).all() and check_data(index).ok


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    root = trees.parquet(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"segtune\[datasets\]"):
        open_data(root)


def test_masks_with_strange_values_are_found(tmp_path):
    index = open_data(trees.saved_dataset(tmp_path / "data"), DataSettings(classes=("a", "b")))
    with pytest.raises(SegtuneError, match="which mean no class"):
        index.reader.mask(index.samples[0])
    settings = DataSettings(classes=("a", "b"), allow=("value-outside-classes",))
    tolerant = open_data(tmp_path / "data", settings)
    assert set(np.unique(tolerant.reader.mask(tolerant.samples[0]))) == {0, 1, 255}
