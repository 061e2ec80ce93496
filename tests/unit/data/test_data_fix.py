"""The corrected copy: what is put right, what is left out, and that it is whole or not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from segtune.data import fix
from segtune.data.check import check_data
from segtune.data.fix import write_fixed
from segtune.data.settings import DataSettings
from segtune.errors import UsageError
from tests.unit.data.test_data_doctor import BLOB, THREE, blobs


@pytest.fixture
def repair(tmp_path_factory):
    """Checks a folder, writes the corrected copy, checks that; returns both reports and what was done."""

    def function(root, **settings):
        chosen = DataSettings(**settings)
        before = check_data(root, chosen)
        done = write_fixed(before, chosen, tmp_path_factory.mktemp("out") / "copy")
        return before, done, check_data(done.folder)

    return function


def masks_of(report) -> dict[str, np.ndarray]:
    return {sample.image.stem: report.usable.reader.mask(sample) for sample in report.usable.samples}


def test_soft_masks_become_class_numbers_and_splits_stay(make_folder, repair):
    soft = [
        np.asarray(Image.fromarray(m * 255).resize((128, 96), Image.Resampling.BILINEAR)) for m in blobs()
    ]
    before, done, after = repair(make_folder(soft), classes=("tissue", "polyp"))
    assert after.findings == () and after.class_names == ("tissue", "polyp")
    assert after.class_pixels == before.class_pixels and after.splits == before.splits
    assert {s.name: s.split for s in after.usable.samples}.values() and done.written == 20
    for i, mask in enumerate(soft):
        stored = np.asarray(Image.open(done.folder / f"masks/{i}.png"))
        assert (stored == (mask > 127)).all()
        assert (done.folder / f"images/{i}.png").read_bytes() == (
            before.root / f"images/{i}.png"
        ).read_bytes()


def test_inverted_masks_are_turned_unless_allowed(make_folder, repair):
    root = make_folder([(1 - mask) * 255 for mask in blobs()])
    _, done, after = repair(root)
    assert after.findings == () and all((masks_of(after)[str(i)] == m).all() for i, m in enumerate(blobs()))
    assert "inverted" in done.changes[0]
    _, done, after = repair(root, allow=("inverted-masks",))
    assert done.changes == () and all((masks_of(after)[str(i)] == 1 - m).all() for i, m in enumerate(blobs()))


@pytest.mark.parametrize("names", [None, ("a", "b", "c")])
def test_labels_counted_from_one(make_folder, repair, names):
    marked = THREE + 1
    marked[0, 0] = 255
    _, _, after = repair(make_folder([marked] * 20), classes=names)
    expected = THREE.copy()
    expected[0, 0] = 255
    assert after.findings == () and all((mask == expected).all() for mask in masks_of(after).values())
    assert after.class_names == (names or ("class_1", "class_2", "class_3"))


def test_interpolated_values_are_ignored(make_folder, repair):
    coarse = np.zeros((12, 16), np.uint8)
    coarse[2:7, 3:8], coarse[6:10, 9:15] = 9, 30
    smooth = np.asarray(Image.fromarray(coarse).resize((64, 48), Image.Resampling.BILINEAR))
    _, done, after = repair(make_folder([smooth] * 20))
    mask = masks_of(after)["3"]
    kept = mask != 255
    assert (
        set(np.unique(mask)) >= {0, 9, 30, 255} and (mask[kept] == smooth[kept]).all() and kept.mean() > 0.6
    )
    assert "interpolation" in done.changes[0]


def test_what_cannot_be_read_is_left_out_and_listed(make_folder, write, repair):
    root = make_folder(blobs())
    (root / "images/3.png").write_bytes(b"")
    write("masks/4.png", BLOB[:10])
    _, done, after = repair(root)
    assert done.written == 18 and after.ok and not {"3", "4"} & masks_of(after).keys()
    text = (done.folder / "changes.txt").read_text()
    assert all(reason in text for reason in done.left_out) and len(done.left_out) == 2
    assert done.left_out[0].startswith("images/3.png: 3.png: the file is empty")


def test_groups_and_strange_names_stay_apart(write, picture, repair, tmp_path):
    for i in range(12):
        write(f"images/{'ab'[i % 2]}/seq{i // 4}_{i // 2}.png", picture(i, 48, 64))
        write(f"masks/{'ab'[i % 2]}/seq{i // 4}_{i // 2}.png", BLOB)
    before, _, after = repair(tmp_path, group=r"(seq\d)")
    assert len(after.usable.samples) == 12 and after.splits == before.splits
    assert {s.group for s in after.usable.samples} == {"seq0", "seq1", "seq2"}


def test_polygons_become_masks(shared_data, repair):
    before, done, after = repair(shared_data / "formats" / "coco")
    assert done.written == 8 and after.class_names == before.class_names
    assert after.class_pixels == before.class_pixels


def test_identical_images_are_left_out(write, picture, repair, tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        for i in range(13):
            write(f"{split}/images/{i}.png", picture(number * 100 + i, 48, 64))
            write(f"{split}/masks/{i}.png", np.roll(BLOB, i, 0))
    for copy, source, moved in (("train/%s/a", "train/%s/1", 0), ("val/%s/a", "train/%s/2", 0),
                                ("test/%s/a", "train/%s/3", 1), ("val/%s/b", "train/%s/3", 0)):  # fmt: skip
        for kind in ("images", "masks"):
            array = np.asarray(Image.open(tmp_path / f"{source % kind}.png"))
            write(f"{copy % kind}.png", np.roll(array, moved if kind == "masks" else 0, 1))
    before, done, after = repair(tmp_path)
    assert before.splits == {"train": 14, "val": 15, "test": 14}
    assert after.splits == {"train": 11, "val": 14, "test": 14} and after.findings == ()
    assert sorted(done.left_out) == [
        "train/images/2.png: the same image as val/images/a.png (val)",
        "train/images/3.png: the same image as test/images/a.png (test); THEIR MASKS DIFFER",
        "train/images/a.png: the same image as train/images/1.png (train)",
        "val/images/b.png: the same image as test/images/a.png (test); THEIR MASKS DIFFER",
    ]
    _, done, _ = repair(tmp_path, allow=("identical-across-splits",))
    assert done.left_out == ("train/images/a.png: the same image as train/images/1.png (train)",)


@pytest.mark.parametrize("format", ["msd", "hf_dataset", "geotiff"])
def test_what_is_no_image_file_is_refused_with_a_way_out(make_folder, tmp_path, format):
    report = replace(check_data(make_folder(blobs(4))), format=format)
    with pytest.raises(UsageError, match="copies images in files of their own") as caught:
        write_fixed(report, DataSettings(), tmp_path.parent / "copy")
    assert "data.values" in str(caught.value.hint)


def test_places_that_are_refused(make_folder, tmp_path):
    root = make_folder(blobs())
    report = check_data(root)
    with pytest.raises(UsageError, match="is there already"):
        write_fixed(report, DataSettings(), root / "images")
    with pytest.raises(UsageError, match="would become a part"):
        write_fixed(report, DataSettings(), root / "copy")


def test_nothing_half_written_is_left(make_folder, tmp_path_factory, monkeypatch):
    out = tmp_path_factory.mktemp("out")
    report = check_data(make_folder(blobs()))
    calls = []

    def fail(plan, sample):
        calls.append(sample)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return BLOB

    monkeypatch.setattr(fix, "_mask", fail)
    with pytest.raises(KeyboardInterrupt):
        write_fixed(report, DataSettings(), out / "copy")
    assert list(out.iterdir()) == []
