from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segtune.data.check import check_data
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError, SegtuneError, UsageError
from tests import trees
from tests.trees import HEIGHT, WIDTH
from tests.unit.data.test_regions import inside


def annotation(segmentation, **more):
    return {"id": 1, "image_id": 0, "category_id": 3, "segmentation": segmentation} | more


def masks(index):
    return {sample.name: index.reader.mask(sample) for sample in index.samples}


def test_objects_become_classes_and_the_smaller_lies_on_top(tmp_path):
    index = open_data(trees.coco(tmp_path))
    assert index.format == "coco"
    assert index.classes.names == ("background", "cat", "dog", "cup")
    found = masks(index)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[0:20, 0:20] = 2
    expected[2:6, 2:6] = 1
    assert (found["0"] == expected).all()
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:, :3] = 255  # the crowd
    expected[:, 1] = 3
    assert (found["1"] == expected).all()
    assert not found["2"].any()
    assert any("1 images without an object are background" in line for line in index.evidence)


def test_the_order_of_the_file_does_not_matter(tmp_path):
    trees.coco(tmp_path)
    before = masks(open_data(tmp_path))
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["annotations"].reverse()
    content["categories"].reverse()
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    after = masks(open_data(tmp_path))
    assert all((before[name] == after[name]).all() for name in before)


def test_some_categories_and_supercategories(tmp_path):
    trees.coco(tmp_path)
    index = open_data(tmp_path, DataSettings(options={"categories": ["dog"]}))
    assert index.classes.names == ("background", "dog")
    assert (masks(index)["0"] == np.pad(np.ones((20, 20)), ((0, 4), (0, 12)))).all()
    assert not masks(index)["1"].any(), "a crowd of what is background is background"
    above = open_data(tmp_path, DataSettings(options={"supercategories": True}))
    assert above.classes.names == ("background", "animal", "kitchen")
    with pytest.raises(UsageError, match=r"no category 'bird'(.|\n)*cat, dog, cup"):
        open_data(tmp_path, DataSettings(options={"categories": ["bird", "dog"]}))


def test_names_and_colours_may_be_stated(tmp_path):
    trees.coco(tmp_path)
    (tmp_path / "dataset.yaml").write_text(
        "classes: {a: [1, 1, 1], b: [2, 2, 2], c: [3, 3, 3], d: [4, 4, 4]}"
    )
    index = open_data(tmp_path)
    assert index.classes.names == ("a", "b", "c", "d") and index.classes.palette[3] == (4, 4, 4)
    with pytest.raises(UsageError, match=r"data\.values is stated"):
        open_data(tmp_path, DataSettings(values={1: 1}))


@pytest.mark.parametrize(
    ("images", "file"),
    [
        (".", "labels.json"),
        ("images", "annotations/instances_default.json"),
        ("images/default", "annotations/instances_default.json"),
        ("data", "labels.json"),
        ("annotations", "annotations/x.json"),
    ],
)
def test_where_images_may_lie(tmp_path, images, file):
    index = open_data(trees.coco(tmp_path, images=images, file=file))
    assert index.format == "coco" and [s.name for s in index.samples] == ["0", "1", "2"]
    assert index.split_sizes == {"train": 1, "val": 1, "test": 1}
    alone = open_data(tmp_path / file) if images == "." else None
    assert alone is None or alone.format == "coco"


def test_the_official_layout_with_other_files_beside(tmp_path):
    for split in ("train", "val"):
        trees.coco(tmp_path, images=f"{split}2017", file=f"annotations/instances_{split}2017.json")
        trees.coco(tmp_path, images="unused", file=f"annotations/person_keypoints_{split}2017.json")
    index = open_data(tmp_path)
    assert index.split_sizes == {"train": 3, "val": 3}
    assert len({sample.name for sample in index.samples}) == 6
    assert {(s.split, s.image.parent.name) for s in index.samples} == {
        ("train", "train2017"),
        ("val", "val2017"),
    }
    one = open_data(tmp_path, DataSettings(options={"annotations": "*_val2017.json"}, val_fraction=0.5))
    assert {s.split for s in one.samples} == {"val"} or one.split_sizes == {"val": 3}


def test_a_file_in_the_folder_of_each_split(tmp_path):
    for split in ("train", "valid", "test"):
        trees.coco(tmp_path, images=split, file=f"{split}/_annotations.coco.json")
    assert open_data(tmp_path).split_sizes == {"train": 3, "val": 3, "test": 3}


def test_which_file_is_meant_must_be_clear(tmp_path):
    trees.coco(tmp_path)
    trees.coco(tmp_path, file="annotations_old.json")
    with pytest.raises(DataError, match=r"not clear which(.|\n)*data\.options\.annotations"):
        open_data(tmp_path)
    assert len(open_data(tmp_path, DataSettings(options={"annotations": "*old*"})).samples) == 3
    with pytest.raises(DataError, match=r"no annotation file matches"):
        open_data(tmp_path, DataSettings(options={"annotations": "new*"}))


def test_the_category_above_all_others_is_no_class(tmp_path):
    categories = [
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "things"},
        {"id": 7, "name": "dog", "supercategory": "things"},
        {"id": 90, "name": "cup", "supercategory": "things"},
    ]
    index = open_data(trees.coco(tmp_path, categories=categories))
    assert index.classes.names == ("background", "cat", "dog", "cup")
    assert any("not a class, as it only stands above others: things" in line for line in index.evidence)


def test_what_is_left_out_is_reported(tmp_path):
    square = [2, 2, 6, 2, 6, 6, 2, 6]
    trees.coco(
        tmp_path,
        annotations=[
            annotation([square]),
            annotation([square], id=2, image_id=99),
            annotation([square], id=3, category_id=99),
            annotation(None, id=4, bbox=[0, 0, 2, 2]),
            annotation([[1, 1, 2, 2], square], id=5),
        ],
    )
    (tmp_path / "images" / "2.png").unlink()
    index = open_data(tmp_path)
    codes = {finding.code: (finding.severity.value, finding.message) for finding in index.findings}
    assert codes.keys() == {
        "unknown-category",
        "annotation-without-image",
        "annotation-without-region",
        "missing-file",
    }
    assert "(2 of 5)" in codes["annotation-without-region"][1]
    assert codes["missing-file"][0] == "error"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [annotation([[float("nan"), 1, 2, 3, 4, 5]])]}, "no list of positions"),
        ({"annotations": [annotation([[1e300, 1, 2, 3, 4, 5]])]}, "no list of positions"),
        ({"annotations": [annotation([[1, 1, 2, 3, 4]])]}, "no list of positions"),
        ({"annotations": [annotation([["a", 1, 2, 3, 4, 5]])]}, "no list of positions"),
        ({"annotations": [annotation([[10**400, 1, 2, 3, 4, 5]])]}, "no list of positions"),
        ({"annotations": [annotation({"size": [1], "counts": [1]})]}, r"it is \[height, width\]"),
        ({"annotations": [annotation({"size": [HEIGHT, WIDTH]})]}, "no run lengths"),
        ({"annotations": [annotation("text")]}, "segmentation of type str"),
        ({"annotations": [annotation(None)]}, "none of 1 annotations has a segmentation"),
        ({"annotations": [{"image_id": [1], "category_id": 3}]}, "the image_id"),
        ({"annotations": None}, "no list 'annotations'"),
        ({"categories": []}, "there are no categories"),
        ({"categories": [{"id": 1, "name": ""}]}, "has the name ''"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "the id 1"),
        ({"images": [{"id": 0, "file_name": "../../etc/passwd"}]}, "leads out of"),
        ({"images": [{"id": 0, "file_name": "/etc/passwd"}]}, "leads out of"),
        ({"images": [{"id": 0, "file_name": "..\\..\\x.png"}]}, "leads out of"),
        ({"images": [{"id": 0, "file_name": "a", "height": 10**6, "width": 10**6}]}, "more than"),
        ({"images": [{"id": 0, "file_name": "a", "height": -1, "width": 4}]}, "the height -1"),
        ({"images": [{"id": 0, "file_name": "a.png"}] * 2}, "two images have the same id"),
    ],
)
def test_hostile_or_broken_files_are_refused(tmp_path, changes, message):
    trees.coco(tmp_path)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=message):
        open_data(tmp_path, DataSettings(format="coco"))


@pytest.mark.parametrize(
    "value",
    [
        {"size": [HEIGHT, WIDTH], "counts": [1, 2, 3]},
        {"size": [HEIGHT, WIDTH], "counts": [-5, HEIGHT * WIDTH + 5]},
        {"size": [HEIGHT, WIDTH], "counts": "junk\x00"},
        {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]},
        {"size": [10**9, 10**9], "counts": [10**18]},
    ],
)
def test_run_lengths_that_do_not_fit_are_found_by_the_check(tmp_path, value):
    trees.coco(tmp_path, annotations=[annotation(value)])
    report = check_data(tmp_path)
    assert [f.code for f in report.findings if f.severity == "error"] == ["unreadable-file"]
    with pytest.raises(DataError, match=r"annotations.json: annotation 1 of 0.png: (the|its|a) run"):
        index = open_data(tmp_path)
        index.reader.mask(next(s for s in index.samples if s.name == "0"))


def test_a_size_that_is_not_the_images_is_found_by_the_check(tmp_path):
    trees.coco(tmp_path)
    trees.photo(tmp_path / "images" / "1.png", 5, height=30)
    assert "size-mismatch" in {finding.code for finding in check_data(tmp_path).findings}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.dictionaries(
        st.sampled_from(["images", "annotations", "categories", "info"]),
        st.recursive(
            st.none() | st.integers() | st.floats() | st.text(max_size=6),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "id",
                            "name",
                            "file_name",
                            "height",
                            "width",
                            "image_id",
                            "category_id",
                            "segmentation",
                        ]
                    ),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=12,
        ),
    )
)
def test_json_of_any_content(tmp_path, content):
    trees.coco(tmp_path)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    try:
        check_data(tmp_path, DataSettings(format="coco"))
    except SegtuneError:
        return


def test_real_polygons(shared_data):
    """Every 17th row and column against a slow reading of the file."""
    root = shared_data / "formats" / "coco"
    index = open_data(root)
    content = json.loads((root / "annotations.json").read_text())
    assert index.format == "coco" and len(index.samples) == 8
    assert index.classes.names == ("background", "date", "fig", "hazelnut")
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    for sample in index.samples:
        mask = index.reader.mask(sample)
        assert mask.shape == (600, 800)
        own = [a for a in content["annotations"] if a["image_id"] == ids[sample.image.name]]
        own.sort(key=lambda a: -a["area"])
        for y in range(0, 600, 17):
            for x in range(0, 800, 17):
                label = 0
                for thing in own:
                    for flat in thing["segmentation"]:
                        points = [*zip(flat[::2], flat[1::2], strict=True)]
                        if min(points)[0] <= x + 1 and inside(points, x + 0.5, y + 0.5):
                            label = thing["category_id"]
                assert mask[y, x] == label
