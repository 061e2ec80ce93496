from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from segtune.data.check import check_data
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError, UsageError
from tests import trees
from tests.trees import HEIGHT, WIDTH, shape


def only(index):
    return index.reader.mask(index.samples[0])


def test_shapes_cover_those_before_them(tmp_path):
    index = open_data(trees.labelme(tmp_path))
    assert index.format == "labelme"
    assert index.classes.names == ("_background_", "cat", "dog")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:11, 3:21] = 2  # outlines belong to their shape
    expected[4:7, 5:8] = 1
    expected[5, 6] = 255
    assert (only(index) == expected).all()


@pytest.mark.parametrize(
    ("entry", "pixels"),
    [
        (shape("cat", [[5, 4], [7, 6]], "rectangle"), lambda y, x: 4 <= y <= 6 and 5 <= x <= 7),
        (shape("cat", [[7.2, 6.9], [5.1, 4]], "rectangle"), lambda y, x: 4 <= y <= 6 and 5 <= x <= 7),
        (shape("cat", [[10, 10], [10, 14]], "circle"), lambda y, x: (y - 10) ** 2 + (x - 10) ** 2 <= 16),
        (shape("cat", [[1, 2], [4, 2], [4, 3], [1, 3]], None), lambda y, x: 2 <= y <= 3 and 1 <= x <= 4),
        (shape("cat", [[-9e6, -9e6], [9e6, 9e6]], "rectangle"), lambda y, x: True),
        (shape("cat", [[500, 500], [600, 600]], "rectangle"), lambda y, x: False),
    ],
)
def test_kinds_of_shapes(tmp_path, entry, pixels):
    index = open_data(trees.labelme(tmp_path, shapes=[entry]))
    expected = [[pixels(y, x) for x in range(WIDTH)] for y in range(HEIGHT)]
    assert (only(index) == np.array(expected, np.uint8)).all()


def test_masks_inside_of_the_file(tmp_path):
    stamp = np.array([[0, 1, 1], [1, 0, 1]], np.uint8) * 255
    buffer = io.BytesIO()
    Image.fromarray(stamp).save(buffer, "PNG")
    entry = shape("cat", [[30, 4], [32, 5]], "mask", mask=base64.b64encode(buffer.getvalue()).decode())
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[4:6, 30:32] = [[0, 1], [1, 0]]  # its last column lies outside
    assert (only(open_data(trees.labelme(tmp_path, shapes=[entry]))) == expected).all()


def test_classes_from_a_list_or_as_stated(tmp_path):
    trees.labelme(tmp_path)
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ndog\nbird\ncat\n")
    index = open_data(tmp_path)
    assert index.classes.names == ("_background_", "dog", "bird", "cat")
    assert set(np.unique(only(index))) == {0, 1, 3, 255}
    stated = open_data(tmp_path, DataSettings(classes=("ground", "cat", "dog")))
    assert stated.classes.names == ("ground", "cat", "dog") and set(np.unique(only(stated))) == {0, 1, 2, 255}
    lacking = open_data(tmp_path, DataSettings(classes=("ground", "cat")))
    [finding] = lacking.findings
    assert finding.code == "unknown-category" and "dog" in finding.message
    with pytest.raises(UsageError, match=r"data\.values"):
        open_data(tmp_path, DataSettings(values={1: 1}))


def test_the_image_may_be_elsewhere_or_inside_of_the_file(tmp_path):
    trees.labelme(tmp_path / "data")
    (tmp_path / "data" / "pictures").mkdir()
    (tmp_path / "data" / "json").mkdir()
    for path in [*(tmp_path / "data").glob("*.png")]:
        path.rename(tmp_path / "data" / "pictures" / path.name)
    for path in [*(tmp_path / "data").glob("*.json")]:
        content = json.loads(path.read_text()) | {"imagePath": f"..\\pictures\\{path.stem}.png"}
        path.unlink()
        (tmp_path / "data" / "json" / path.name).write_text(json.dumps(content))
    index = open_data(tmp_path / "data")
    assert [sample.image.parent.name for sample in index.samples] == ["pictures"] * 3
    pixels = [index.reader.image(sample) for sample in index.samples]
    for sample in index.samples:
        content = json.loads(sample.mask.read_text())
        content["imageData"] = base64.b64encode(sample.image.read_bytes()).decode()
        content |= {"imageHeight": None, "imageWidth": None}
        sample.mask.write_text(json.dumps(content))
        sample.image.unlink()
    index = open_data(tmp_path / "data")
    assert {sample.image.suffix for sample in index.samples} == {".json"}
    for sample, before in zip(index.samples, pixels, strict=True):
        assert (index.reader.image(sample) == before).all()
        assert index.reader.mask(sample).shape == before.shape[:2]
    assert check_data(tmp_path / "data").ok


def test_split_folders_points_and_lost_images(tmp_path):
    for split in ("train", "val"):
        trees.labelme(tmp_path / split)
    trees.labelme(
        tmp_path / "test", shapes=[shape("cat", [[1, 1]], "point"), shape("cat", [[1, 1], [2, 2]], "line")]
    )
    index = open_data(tmp_path)
    assert index.split_sizes == {"train": 3, "val": 3, "test": 3}
    [finding] = index.findings
    assert finding.code == "annotation-without-region" and len(finding.files) == 3
    (tmp_path / "val" / "1.png").unlink()
    assert "missing-file" in {finding.code for finding in open_data(tmp_path).findings}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": None}, "no list 'shapes'"),
        ({"shapes": [shape(3, [[1, 1], [2, 2], [3, 1]])]}, "has the label 3"),
        ({"shapes": [shape("a", [[1, 1], [2, 2]], "star")]}, "is a 'star'"),
        ({"shapes": [shape("a", [[1, 1]], "circle")]}, "has 1 points"),
        ({"shapes": [shape("a", [[1, float("inf")], [2, 2], [3, 1]])]}, "no list of positions"),
        ({"shapes": [shape("a", [[1, 1e30], [2, 2], [3, 1]])]}, "no list of positions"),
        ({"shapes": [shape("a", [[1, 1, 1], [2, 2, 2], [3, 1, 1], [3, 1, 1]])]}, "no list of positions"),
        ({"shapes": [shape("a", "xy")]}, "no list of positions"),
        ({"shapes": [shape("a", [[1, 1], [2, 2]], "mask", mask="AAAA")]}, "cannot be read"),
        ({"shapes": [shape("a", [[1, 1], [2, 2]], "mask", mask=7)]}, "no base64"),
        ({"imageHeight": 10**6, "imageWidth": 10**6}, "more than"),
        ({"imageHeight": -3}, "the height -3"),
    ],
)
def test_hostile_or_broken_files_are_refused(tmp_path, changes, message):
    trees.labelme(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path, DataSettings(format="labelme"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\..\\secret.png", "a\0.png"])
def test_images_outside_of_the_folder_are_refused(tmp_path, name):
    trees.labelme(tmp_path, imagePath=name)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="leads out of"):
        open_data(tmp_path)


def test_embedded_bytes_of_any_kind(tmp_path):
    trees.labelme(tmp_path, imageData="!!! not base64", shapes=[shape("a", [[1, 1], [9, 9]], "rectangle")])
    for path in tmp_path.glob("*.png"):
        path.unlink()
    report = check_data(tmp_path)
    assert {f.code for f in report.findings if f.severity == "error"} == {"unreadable-file"}


def test_the_three_representations_give_one_class_map(shared_data):
    """JSON files, palette files and arrays of the same photos; Pillow has changed by one pixel since."""
    root = shared_data / "formats" / "labelme"
    names = (root / "data_dataset_voc" / "class_names.txt").read_text().split("\n")
    shapes = open_data(root / "data_annotated", DataSettings(classes=tuple(name.strip() for name in names)))
    files = open_data(root / "data_dataset_voc")
    assert (shapes.format, files.format) == ("labelme", "folder")
    assert len(shapes.samples) == len(files.samples) == 3
    different = 0
    for sample in shapes.samples:
        stored = np.load(root / "data_dataset_voc" / f"{sample.name}.npy")
        stored = np.where(stored == -1, 255, stored)
        other = next(own for own in files.samples if own.name == sample.name)
        assert (files.reader.mask(other) == stored).all()
        different += int((shapes.reader.mask(sample) != stored).sum())
    assert different <= 1


def test_the_whole_folder_takes_its_labels_from_the_list(shared_data):
    index = open_data(shared_data / "formats" / "labelme")
    assert index.format == "labelme" and index.classes.num_classes == 21 and len(index.samples) == 3
