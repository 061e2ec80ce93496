"""The data check: each finding where it belongs, and none where it does not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from segtune.data.base import Severity
from segtune.data.check import check_data
from segtune.data.duplicates import near_duplicates
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError

MASK = np.kron(np.array([[0, 1], [2, 1]], np.uint8), np.ones((12, 16), np.uint8))


@pytest.fixture
def clean(make_folder):
    """A data set of twenty samples that nothing is wrong with."""
    return make_folder([MASK] * 20)


def codes(report) -> set[str]:
    return {finding.code for finding in report.findings}


def finding(report, code):
    return next(finding for finding in report.findings if finding.code == code)


def test_clean_data_has_no_findings(clean):
    report = check_data(clean)
    assert report.ok and report.findings == ()
    assert report.splits == {"train": 14, "val": 3, "test": 3}
    assert report.class_pixels["train"] == (14 * 192, 14 * 384, 14 * 192)
    assert report.image_sizes == {(24, 32): 20}
    assert report.require_ok() == open_data(clean)


def test_report_is_plain_json(clean):
    report = check_data(clean)
    values = json.loads(json.dumps(report.to_dict()))
    for key in ("format", "num_classes", "class_names", "ignore_index", "splits", "findings", "evidence"):
        assert key in values
    assert values["num_classes"] == 3 and values["ok"] is True and values["splits"]["val"] == 3


def test_text_holds_the_histogram(clean):
    text = check_data(clean).text()
    assert "class_1" in text and "50.0%" in text and "0 errors, 0 warnings" in text and "####" in text


def test_progress_is_told(clean):
    seen = []
    check_data(clean, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 20) for i in range(1, 21)]


def test_unreadable_files(clean, tmp_path):
    image, mask = tmp_path / "images/3.png", tmp_path / "masks/5.png"
    image.write_bytes(image.read_bytes()[:200])
    mask.write_bytes(b"")
    report = check_data(clean)
    assert not report.ok
    assert set(finding(report, "unreadable-file").files) == {"images/3.png", "masks/5.png"}
    with pytest.raises(DataError, match="unreadable-file") as caught:
        report.require_ok()
    assert "data.allow=[unreadable-file]" in str(caught.value.hint)


def test_allowed_errors_are_warnings_and_their_samples_left_out(clean, write, tmp_path):
    (tmp_path / "images/3.png").write_bytes(b"x")
    write("masks/4.png", MASK[:10])
    settings = DataSettings(allow=("unreadable-file", "size-mismatch"))
    report = check_data(clean, settings)
    assert report.ok and {f.severity for f in report.findings if f.code in settings.allow} == {
        Severity.WARNING
    }
    usable = report.require_ok()
    assert {s.name for s in open_data(clean, settings).samples} - {s.name for s in usable.samples} == {
        "3",
        "4",
    }


def test_size_mismatch(clean, write):
    write("masks/4.png", MASK.repeat(2, axis=0))
    report = check_data(clean)
    assert finding(report, "size-mismatch").files == ("masks/4.png",)
    assert "48 x 32 for 24 x 32" in finding(report, "size-mismatch").message


def test_exif_rotation(clean, write, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    write("images/4.png", picture(4, 24, 32), exif=exif)
    report = check_data(clean)
    assert finding(report, "exif-rotated").files == ("images/4.png",)
    assert "EXIF" in finding(report, "size-mismatch").hint
    write("masks/4.png", MASK, exif=exif)
    report = check_data(clean)
    assert not codes(report) & {"exif-rotated", "size-mismatch"}


def test_values_outside_of_the_classes(clean, write):
    strange = MASK.copy()
    strange[0, :3] = (9, 9, 77)
    write("masks/4.png", strange)
    report = check_data(clean, DataSettings(classes=("a", "b", "c")))
    found = finding(report, "value-outside-classes")
    assert found.files == ("masks/4.png",) and "the values 9, 77" in found.message and not report.ok
    report = check_data(clean, DataSettings(classes=("a", "b", "c"), allow=("value-outside-classes",)))
    index = report.require_ok()
    assert (index.reader.mask(next(s for s in index.samples if s.name == "4"))[0, :3] == 255).all()


def test_all_ignored_and_absent_classes(make_folder):
    masks = [MASK] * 20
    masks[0] = np.full((24, 32), 255, np.uint8)
    report = check_data(make_folder(masks), DataSettings(classes=("a", "b", "c", "ghost")))
    assert finding(report, "all-ignored-mask").files == ("masks/0.png",)
    assert "ghost" in finding(report, "class-absent").message
    assert "class-absent-from-split" not in codes(report)


def test_class_absent_from_one_split(make_folder, tmp_path):
    root = make_folder([np.minimum(MASK, 1) if i < 10 else MASK for i in range(20)])
    (root / "dataset.yaml").write_text("split: {train: ['?'], val: ['1?']}")
    report = check_data(root)
    assert "absent from train" in finding(report, "class-absent-from-split").message
    assert finding(report, "class-absent-from-split").severity is Severity.WARNING


def test_imbalance_and_few_samples(make_folder):
    rare = np.zeros((40, 40), np.uint8)
    rare[0, 0] = 1
    report = check_data(make_folder([rare] * 5))
    assert "class_1 0.06%" in finding(report, "class-imbalance").message
    assert finding(report, "few-samples").severity is Severity.WARNING and report.ok


def test_empty_splits(make_folder):
    root = make_folder([MASK] * 12)
    report = check_data(root, DataSettings(val_fraction=0, test_fraction=0))
    assert {f.severity for f in report.findings if f.code == "empty-split"} == {Severity.INFO}
    (root / "dataset.yaml").write_text("split: {test: ['*']}")
    report = check_data(root)
    assert not report.ok and "no training samples" in finding(report, "empty-split").message
    assert check_data(root, DataSettings(allow=("empty-split",))).ok


def test_empty_masks_and_alpha_and_sizes_are_told(make_folder, write, picture):
    masks = [np.minimum(MASK, 1)] * 20
    masks[3] = np.zeros((24, 32), np.uint8)
    masks[4] = np.ones((30, 20), np.uint8)
    root = make_folder(masks)
    write("images/5.png", np.dstack([picture(5), np.full((24, 32), 255, np.uint8)]))
    report = check_data(root)
    assert finding(report, "empty-mask").files == ("masks/3.png",)
    assert finding(report, "alpha-dropped").files == ("images/5.png",)
    assert "2 sizes" in finding(report, "mixed-sizes").message
    assert all(f.severity is Severity.INFO for f in report.findings)


def test_several_frames(clean, picture, tmp_path):
    frames = [Image.fromarray(picture(i)) for i in range(3)]
    (tmp_path / "images/3.png").unlink()
    frames[0].save(tmp_path / "images/3.gif", save_all=True, append_images=frames[1:])
    assert finding(check_data(clean), "several-frames").files == ("images/3.gif",)


def test_near_duplicates_across_splits_only(write, picture, tmp_path):
    for split in ("train", "val", "test"):
        for i in range(10):
            write(
                f"{split}/images/{i}.png", picture({"train": 0, "val": 100, "test": 200}[split] + i, 96, 128)
            )
            write(f"{split}/masks/{i}.png", np.kron(MASK, np.ones((4, 4), np.uint8)))
    assert not check_data(tmp_path).findings
    write("train/images/1.png", picture(0, 96, 128))
    assert codes(check_data(tmp_path)) == {"identical-images"}
    noisy = np.clip(picture(3, 96, 128) + np.random.default_rng(0).normal(0, 6, (96, 128, 3)), 0, 255)
    write("test/images/7.png", noisy.astype(np.uint8))
    report = check_data(tmp_path)
    found = finding(report, "near-duplicate-across-splits")
    assert found.files == ("train/images/3.png", "test/images/7.png") and "(1 of 10)" in found.message


def test_blank_images_are_no_duplicates():
    blank = np.full((4, 32, 32), 30, np.uint8)
    assert near_duplicates(blank, blank) == []


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_duplicates_do_not_depend_on_the_chunk(chunk):
    random = np.random.default_rng(0)
    first = random.integers(0, 255, (7, 32, 32), dtype=np.uint8)
    second = np.concatenate([random.integers(0, 255, (2, 32, 32), dtype=np.uint8), first[[5, 1]]])
    assert near_duplicates(first, second, chunk=chunk) == [(1, 3), (5, 2)]
