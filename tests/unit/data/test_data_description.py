"""The optional dataset.yaml: what it says, what goes before it, and mistakes in it."""

from __future__ import annotations

import numpy as np
import pytest

from segtune.data.description import Description, read_description
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError

MASK = np.kron(np.array([[0, 1], [2, 11]], np.uint8), np.ones((12, 16), np.uint8))


@pytest.fixture
def described(make_folder):
    def function(text):
        root = make_folder([MASK] * 10)
        (root / "dataset.yaml").write_text(text)
        return root

    return function


def test_names_and_ignored_value(described):
    index = open_data(
        described("classes: [sky, road, car]\nignore_index: 11\npalette: [[1,2,3],[4,5,6],[7,8,9]]")
    )
    assert index.classes.names == ("sky", "road", "car")
    assert index.classes.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert set(np.unique(index.reader.mask(index.samples[0]))) == {0, 1, 2, 255}
    assert "dataset.yaml says: classes, ignore_index, palette" in index.evidence


def test_settings_go_first(described):
    root = described("classes: [sky, road, car]\nignore_index: 11\nthreshold: 5\nmasks: index")
    index = open_data(root, DataSettings(classes=("a", "b"), masks="binary", threshold=1))
    assert index.classes.names == ("a", "b")
    assert (index.details["masks"], index.details["threshold"]) == ("binary", 1)


def test_merge_fills_in_defaults_only():
    description = Description.model_validate(
        {"ignore_index": 11, "masks": "index", "split": {"val": 0.3, "seed": 7}}
    )
    merged = description.merge(DataSettings(masks="rgb"))
    assert (merged.ignore_index, merged.masks, merged.val_fraction, merged.split_seed) == (11, "rgb", 0.3, 7)
    assert Description().merge(DataSettings()) == DataSettings()


def test_value_map(described):
    index = open_data(described("values: {0: 0, 1: 1, 2: 1, 11: 255}\nclasses: [a, b]"))
    assert np.bincount(index.reader.mask(index.samples[0]).ravel())[[0, 1, 255]].tolist() == [192, 384, 192]


def test_split_by_share(described):
    assert open_data(described("split: {val: 0.3, test: 0.2, seed: 4}")).split_sizes == {
        "train": 5,
        "val": 3,
        "test": 2,
    }


def test_split_by_lists(described):
    index = open_data(described("split: {train: ['[0-5]'], val: [6, '7'], test: '8'}".replace("6,", "'6',")))
    assert index.split_sizes == {"train": 6, "val": 2, "test": 1}
    assert {finding.code for finding in index.findings} >= {"sample-without-split"}
    index = open_data(described("split: {train: ['*'], val: ['7', nobody]}"))
    assert {f.code: f.severity.value for f in index.findings if "split" in f.code} == {
        "sample-in-two-splits": "error",
        "split-list-without-match": "warning",
    }
    with pytest.raises(DataError, match="match no sample"):
        open_data(described("split: {train: [nobody]}"))


def test_group(described):
    index = open_data(described(r"group: '^([0-4])'"))
    assert [sample.group for sample in index.samples][:6] == ["0", "1", "2", "3", "4", None]
    assert any(finding.code == "sample-without-group" for finding in index.findings)


def test_absent_and_empty_files_say_nothing(make_folder, tmp_path):
    assert read_description(make_folder([MASK])) == Description()
    for text in ("", "# only a comment\n"):
        (tmp_path / "dataset.yaml").write_text(text)
        assert read_description(tmp_path) == Description()


def test_all_mistakes_in_one_report(described):
    root = described(
        "clases: [a, b]\nignore_index: 300\npalette: [[1, 2]]\nthreshold: high\n"
        "split: {valid: 0.2}\nmasks: rbg\n"
    )
    with pytest.raises(DataError) as caught:
        read_description(root)
    message = str(caught.value)
    assert "dataset.yaml" in message
    for part in (
        "clases",
        "did you mean 'classes'?",
        "ignore_index",
        "300",
        "palette",
        "threshold",
        "'high'",
        "masks",
        "'rbg'",
        "valid",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("classes: [a", "not readable as YAML"),
        ("classes: !!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("a: &x [1]\nclasses: *x", "references"),
        ("group: a\ngroup: b", "stands twice"),
        ("[1, 2]", "holds list"),
        ("just text", "holds str"),
        ("classes: [a]", "at least 2"),
        ("classes: [a, a]", "only once"),
        ("classes: [a, b]\npalette: [[0, 0, 0]]", "1 colours for 2 classes"),
        ("classes: {a: [1, 2, 3], b: [1, 2, 3]}", "same colour"),
        ("classes: {a: [1, 2, 3], b: [1, 2, 999]}", "999"),
        ("classes: {a: [1, 2, 3], b: [4, 5, 6]}\npalette: [[0, 0, 0], [1, 1, 1]]", "already"),
        ("split: {val: 1.5}", "val"),
        ("split: {train: [a], vall: [b]}", "did you mean 'val'"),
        ("{{{{", "YAML"),
        ("? {a: 1}\n: b", "YAML"),
        ("classes: 2001-99-99", "YAML|classes"),
        ("group: '('", "no regular expression"),
        ("group: 'a'", "has no group"),
        ("[" * 3000, "YAML"),
        ("x" * 2_000_000, "larger than"),
        ("a: \x00", "YAML"),
    ],
)
def test_mistakes(described, text, match):
    from segtune.errors import SegtuneError

    with pytest.raises(SegtuneError, match=match):
        open_data(described(text))


def test_beside_a_csv(make_folder, tmp_path):
    make_folder([MASK] * 4)
    (tmp_path / "list.csv").write_text(
        "image,mask\n" + "".join(f"images/{i}.png,masks/{i}.png\n" for i in range(4))
    )
    (tmp_path / "dataset.yml").write_text("ignore_index: 11\nclasses: [a, b, c]")
    assert open_data(tmp_path / "list.csv").classes.names == ("a", "b", "c")
