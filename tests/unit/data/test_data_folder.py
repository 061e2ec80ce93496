"""Folder layouts: which image belongs to which mask, and to which split."""

from __future__ import annotations

import numpy as np
import pytest

from segtune.data.folder import Folder
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError, UnknownNameError, UsageError

MASK = np.kron(np.array([[0, 1], [1, 0]], np.uint8), np.ones((12, 16), np.uint8))


@pytest.fixture
def layout(write, picture, tmp_path):
    """Writes images and masks at given places: {image name: mask name}."""

    def function(pairs):
        for i, (image, mask) in enumerate(pairs.items()):
            write(image, picture(i))
            if mask is not None:
                write(mask, MASK)
        return tmp_path

    return function


def found(index) -> dict[str, tuple[str, str | None]]:
    return {
        sample.image.relative_to(index.root).as_posix(): (
            sample.mask.relative_to(index.root).as_posix(),
            sample.split,
        )
        for sample in index.samples
    }


def codes(index) -> dict[str, str]:
    return {finding.code: finding.severity.value for finding in index.findings}


@pytest.mark.parametrize("images", ["images", "imgs", "JPEGImages", "img_dir", "Images", "image", "photos"])
@pytest.mark.parametrize(
    "masks", ["masks", "labels", "annotations", "SegmentationClass", "ann_dir", "GT", "mask"]
)
def test_names_of_the_folders(layout, images, masks):
    root = layout({f"{images}/{i}.png": f"{masks}/{i}.png" for i in range(4)})
    index = open_data(root)
    assert index.format == "folder" and len(index.samples) == 4 and not index.findings
    assert f"{masks}/" in index.evidence[0]


TREES = {
    "split above": ("{split}/images/{name}.jpg", "{split}/masks/{name}.png"),
    "split below": ("images/{split}/{name}.jpg", "masks/{split}/{name}.png"),
    "split in the folder's name": ("{split}_images/{name}.jpg", "{split}_labels/{name}.png"),
    "images without a word": ("{split}/{name}.png", "{split}annot/{name}.png"),
    "sub folders": ("images/{split}/city/{name}.png", "labels/{split}/city/{name}.png"),
    "a folder around": ("set/images/{split}/{name}.bmp", "set/masks/{split}/{name}.tif"),
    "suffixes": ("{split}/{name}_image.png", "{split}/{name}_mask.png"),
    "prefixes": ("{split}/images/img_{name}.png", "{split}/masks/mask_{name}.gif"),
}


@pytest.mark.parametrize("tree", TREES, ids=str)
@pytest.mark.parametrize(
    "words", [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "valid", "Test")]
)
def test_splits_above_and_below(layout, tree, words):
    image, mask = TREES[tree]
    root = layout(
        {
            image.format(split=word, name=f"{word}{i}"): mask.format(split=word, name=f"{word}{i}")
            for word in words
            for i in range(3)
        }
    )
    index = open_data(root)
    assert index.split_sizes == {"train": 3, "val": 3, "test": 3} and not index.findings
    for name, (own, split) in found(index).items():
        assert (own, split) == (
            _mask_of(name, image, mask, words),
            dict(zip(words, ("train", "val", "test"), strict=True))[_word(name, words)],
        )


def _word(name: str, words) -> str:
    return next(word for word in words if f"{word}0" in name or f"{word}1" in name or f"{word}2" in name)


def _mask_of(name: str, image: str, mask: str, words) -> str:
    word = _word(name, words)
    number = next(i for i in range(3) if f"{word}{i}" in name)
    return mask.format(split=word, name=f"{word}{number}")


def test_nnunet_names(layout):
    root = layout({f"images{s}/{s}{i}.png": f"labels{s}/{s}{i}.png" for s in ("Tr", "Ts") for i in range(4)})
    assert open_data(root).split_sizes == {"train": 3, "val": 1, "test": 4}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}_image.png", "{}_target.png"),
        ("{}_sat.jpg", "{}_mask.png"),
        ("{}.jpg", "{}_label.png"),
        ("{}.jpg", "gt-{}.png"),
        ("img {}.png", "mask {}.png"),
        ("{}.png", "{}.seg.png"),
        ("{}/image.png", "{}/mask.png"),
    ],
)
def test_one_flat_folder(layout, image, mask):
    root = layout({image.format(name): mask.format(name) for name in ("a1", "a2", "b_mask_3")})
    index = open_data(root)
    assert {name: own for name, (own, _) in found(index).items()} == {
        image.format(name): mask.format(name) for name in ("a1", "a2", "b_mask_3")
    }
    assert {sample.name for sample in index.samples} == {"a1", "a2", "b_mask_3"}


def test_equal_names_in_sub_folders_stay_apart(layout):
    pairs = {f"images/{city}/{i}.png": f"masks/{city}/{i}.png" for city in "ab" for i in range(2)}
    index = open_data(layout(pairs))
    assert {k: v for k, (v, _) in found(index).items()} == pairs
    assert {sample.name for sample in index.samples} == {"a/0", "a/1", "b/0", "b/1"}


def test_equal_names_in_splits_stay_apart(layout):
    pairs = {
        f"{split}/images/{i}.png": f"{split}/masks/{i}.png"
        for split in ("train", "val", "test")
        for i in range(3)
    }
    index = open_data(layout(pairs))
    assert {k: v for k, (v, _) in found(index).items()} == pairs
    assert len({sample.name for sample in index.samples}) == 9


def test_masks_that_lie_flatter_than_images(layout):
    root = layout({"images/x/1.png": "masks/1.png", "images/y/2.png": "masks/2.png"})
    assert len(open_data(root).samples) == 2


def test_unmatched_files_are_named(layout, write, picture):
    root = layout({f"images/{i}.png": f"masks/{i}.png" for i in range(4)})
    write("images/lonely.png", picture(9))
    write("masks/widow.png", MASK)
    index = open_data(root)
    assert len(index.samples) == 4
    assert [(f.severity.value, f.files) for f in index.findings if f.code == "unmatched-file"] == [
        ("warning", ("images/lonely.png",)),
        ("warning", ("masks/widow.png",)),
    ]


def test_mostly_unmatched_is_an_error_unless_allowed(layout):
    root = layout({"images/a.png": "masks/a.png", "images/b.png": None, "images/c.png": None})
    assert codes(open_data(root))["unmatched-file"] == "error"
    allowed = open_data(root, DataSettings(allow=("unmatched-file",)))
    assert codes(allowed)["unmatched-file"] == "warning"
    assert "allowed by data.allow" in allowed.findings[0].message


def test_no_pair_at_all(layout):
    root = layout({"images/a.png": "masks/b.png"})
    with pytest.raises(DataError, match=r"1 images and 1 masks.*a\.png and b\.png"):
        open_data(root)


def test_names_that_differ_in_the_ending_only(layout, write, picture):
    root = layout({f"images/{i}.png": f"masks/{i}.png" for i in range(3)})
    write("images/1.jpg", picture(8))
    index = open_data(root)
    assert codes(index)["duplicate-name"] == "error" and len(index.samples) == 3


def test_images_outside_of_the_splits(layout):
    root = layout(
        {f"train/images/{i}.png": f"train/masks/{i}.png" for i in range(8)} | {"images/x.png": "masks/x.png"}
    )
    index = open_data(root)
    assert codes(index)["sample-without-split"] == "warning" and len(index.samples) == 8


def test_hidden_and_foreign_files_do_not_matter(layout, write, picture, tmp_path):
    root = layout({f"images/{i}.png": f"masks/{i}.png" for i in range(3)})
    write(".cache/images/9.png", picture())
    write("__MACOSX/images/9.png", picture())
    (tmp_path / "images/._0.png").write_bytes(b"x")
    (tmp_path / "images/Thumbs.db").write_bytes(b"x")
    assert not open_data(root).findings


def test_links_that_lead_in_circles_end(layout):
    root = layout({f"images/{i}.png": f"masks/{i}.png" for i in range(3)})
    (root / "images" / "again").symlink_to(root)
    (root / "masks" / "images").symlink_to(root / "images")
    (root / "images" / "dead.png").symlink_to(root / "dead")
    assert len(open_data(root).samples) == 3


def test_no_data_says_what_was_looked_for(tmp_path):
    with pytest.raises(UsageError, match="no data at") as caught:
        open_data(tmp_path / "a" / "b")
    assert "nothing" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"it holds nothing(.|\n)*\n  manifest: ") as error:
        open_data(tmp_path)
    assert "images/" in str(error.value.hint)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"a file of 1 bytes"):
        open_data(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"notes\.txt"):
        open_data(tmp_path)


def test_stated_format(layout):
    root = layout({f"images/{i}.png": f"masks/{i}.png" for i in range(3)})
    assert open_data(root, DataSettings(format="folder")).evidence[0] == "format folder: as stated"
    with pytest.raises(UnknownNameError, match="foldr"):
        open_data(root, DataSettings(format="foldr"))
    with pytest.raises(DataError, match="no CSV file"):
        open_data(root, DataSettings(format="manifest"))


def test_include_exclude_and_limit(layout):
    root = layout({f"images/{n}{i}.png": f"masks/{n}{i}.png" for n in ("day", "dusk") for i in range(6)})
    index = open_data(root, DataSettings(include=("day*",), exclude=("*3",)))
    assert {sample.name for sample in index.samples} == {"day0", "day1", "day2", "day4", "day5"}
    index = open_data(root, DataSettings(limit=2))
    assert max(index.split_sizes.values()) == 2 and sum(index.split_sizes.values()) == 6
    with pytest.raises(DataError, match="leave none of 12"):
        open_data(root, DataSettings(include=("night*",)))


def test_names_that_only_look_like_splits(layout):
    root = layout({f"test_run_3/images/{i}.png": f"test_run_3/masks/{i}.png" for i in range(6)})
    assert open_data(root).split_sizes == {"train": 4, "val": 1, "test": 1}


def test_detection_leaves_other_trees_alone(layout, write, picture, tmp_path):
    write("images/1.png", picture())
    write("images/2.png", picture())
    assert Folder().detect(tmp_path) is None
