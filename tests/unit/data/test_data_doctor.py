"""Mistakes that people make with data sets, one on purpose in each test, and what the check says of it."""

from __future__ import annotations

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from segtune.data.check import check_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX

BLOB = np.zeros((48, 64), np.uint8)
BLOB[14:36, 20:44] = 1
THREE = np.zeros((48, 64), np.uint8)
THREE[8:30, 10:30], THREE[20:40, 34:60] = 1, 2


def codes(report) -> set[str]:
    return {finding.code for finding in report.findings}


def finding(report, code):
    return next(finding for finding in report.findings if finding.code == code)


def blobs(number: int = 20):
    return [np.roll(BLOB, (i % 5, i % 7), (0, 1)) for i in range(number)]


def test_sound_data_of_every_coding_raises_nothing(make_folder):
    report = check_data(make_folder([mask * 255 for mask in blobs()]))
    assert report.findings == () and report.verdict.startswith("ready to train: 2 classes, 14 train, 3 val")
    assert report.mask_values.keys() == {0, 255} and report.mask_values[255] == (20 * 22 * 24, 20)


def test_the_verdict_comes_first_and_every_finding_has_a_fix(make_folder, tmp_path):
    root = make_folder(blobs(6))
    (root / "images/3.png").write_bytes(b"")
    report = check_data(root)
    lines = report.text().splitlines()
    assert lines[0] == f"{root}: not ready: 1 error, 1 warning" and lines[1].startswith("  error [")
    assert lines[2].startswith("    fix: ") and report.to_dict()["verdict"] == report.verdict
    assert all(finding["hint"] for finding in report.to_dict()["findings"])


def test_foreground_that_is_the_ignored_value(make_folder):
    root = make_folder([mask * 255 for mask in blobs()])
    report = check_data(root, DataSettings(masks="index"))
    assert not report.ok and "data.masks=binary" in finding(report, "foreground-ignored").hint
    report = check_data(root, DataSettings(classes=("a", "b", "c")))
    assert "foreground-ignored" in codes(report)


@pytest.mark.parametrize("high", [1, 255])
def test_inverted_masks(make_folder, high):
    report = check_data(make_folder([(1 - mask) * high for mask in blobs()]))
    found = finding(report, "inverted-masks")
    assert "83% of the median mask and 100% of the masks' borders" in found.message
    assert f"data.values={{0: 1, {high}: 0}}" in found.hint


def test_large_foreground_inside_of_the_picture_is_not_inverted(make_folder):
    large = np.zeros((48, 64), np.uint8)
    large[3:-3, 3:-3] = 1
    assert not check_data(make_folder([large] * 20)).findings


def test_labels_counted_from_one(make_folder):
    root = make_folder([THREE + 1] * 20)
    report = check_data(root)
    assert "the values 1 to 3 and never 0" in finding(report, "off-by-one-labels").message
    assert "off-by-one-labels" in codes(check_data(root, DataSettings(classes=("a", "b", "c"))))
    mapped = check_data(root, DataSettings(values={1: 0, 2: 1, 3: 2}))
    assert "off-by-one-labels" not in codes(mapped) and mapped.num_classes == 3


def test_masks_resized_with_interpolation(make_folder):
    coarse = np.zeros((12, 16), np.uint8)
    coarse[2:7, 3:8], coarse[6:10, 9:15] = 9, 30
    smooth = Image.fromarray(coarse).resize((64, 48), Image.Resampling.BILINEAR)
    found = finding(check_data(make_folder([np.asarray(smooth)] * 20)), "interpolated-masks")
    assert len(found.files) == 20 and "nearest neighbour" in found.hint


def test_a_thin_line_around_objects_is_no_interpolation(make_folder):
    cell = np.zeros((48, 64), np.uint8)
    cell[10:30, 10:30] = 1
    cell[11:29, 11:29] = 2
    assert not check_data(make_folder([cell] * 20)).findings


def test_soft_black_and_white_masks(make_folder):
    smooth = [
        np.asarray(Image.fromarray(m * 255).resize((128, 96), Image.Resampling.BILINEAR)) for m in blobs()
    ]
    root = make_folder(smooth)
    # A few levels could be classes as well; that they lie between two others tells.
    assert "state data.masks=binary" in finding(check_data(root), "interpolated-masks").hint
    found = finding(check_data(root, DataSettings(masks="binary")), "soft-masks")
    assert len(found.files) == 20 and "foreground is above 127" in found.message


def noise(seed: int, channels: int | None = None):
    shape = (96, 128) if channels is None else (96, 128, channels)
    return np.random.default_rng(seed).integers(0, 240, shape, dtype=np.uint8)


def test_one_pair_that_is_swapped(make_folder, write):
    root = make_folder([np.kron(m, np.ones((2, 2), np.uint8)) for m in blobs()])
    write("images/4.png", np.kron(BLOB, np.ones((2, 2), np.uint8)))
    write("masks/4.png", noise(4))
    report = check_data(root, DataSettings(classes=("a", "b")))
    assert finding(report, "image-and-mask-swapped").files == ("images/4.png",) and not report.ok


def test_folders_that_are_swapped(write, tmp_path):
    for i in range(6):
        write(f"masks/{i}.png", noise(i, 3))
        write(f"images/{i}.png", BLOB.repeat(2, 0).repeat(2, 1))
    with pytest.raises(DataError, match="look swapped") as caught:
        check_data(tmp_path)
    assert "exchange the folders" in str(caught.value.hint)


def test_the_same_file_in_two_splits(write, picture, tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        for i in range(10):
            write(f"{split}/images/{i}.png", picture(number * 100 + i, 48, 64))
            write(f"{split}/masks/{i}.png", BLOB)
    write("test/images/7.png", picture(3, 48, 64))
    report = check_data(tmp_path)
    found = finding(report, "identical-across-splits")
    assert found.files == ("train/images/3.png", "test/images/7.png")
    assert "near-duplicate-across-splits" not in codes(report)


def test_sequences_torn_by_a_random_split(write, picture, tmp_path):
    for i in range(24):
        write(f"images/patient{i // 6}_slice{i % 6:02}.png", picture(i, 48, 64))
        write(f"masks/patient{i // 6}_slice{i % 6:02}.png", BLOB)
    found = finding(check_data(tmp_path), "names-across-splits")
    assert "4 groups" in found.message
    group = found.hint.split("data.group='")[1].rstrip("'")
    grouped = check_data(tmp_path, DataSettings(group=group))
    assert {s.group for s in grouped.usable.samples} == {f"patient{i}" for i in range(4)}
    assert not codes(grouped) & {"names-across-splits", "sample-without-group"}


@pytest.mark.parametrize(("step", "overlap"), [(48, True), (64, False)])
def test_overlapping_tiles(write, picture, tmp_path, step, overlap):
    for i in range(25):
        name = f"town_{i // 5 * step}_{i % 5 * step}"
        write(f"images/{name}.png", picture(i, 64, 64))
        write(f"masks/{name}.png", np.pad(BLOB, ((0, 16), (0, 0))))
    assert ("overlapping-tiles" in codes(check_data(tmp_path))) is overlap


def test_scales_of_values(write, picture, tmp_path):
    deep = [picture(i, 48, 64)[:, :, 0].astype(np.uint16) * 257 for i in range(20)]
    for i, image in enumerate(deep):
        write(f"images/{i}.tif", image)
        write(f"masks/{i}.png", BLOB)
    assert not check_data(tmp_path).findings
    for i in (3, 5):
        write(f"images/{i}.tif", deep[i] // 64)
    found = finding(check_data(tmp_path), "mixed-intensities")
    assert found.files == ("images/3.tif", "images/5.tif")
    for i, image in enumerate(deep):
        write(f"images/{i}.tif", image // 16)
    hint = finding(check_data(tmp_path), "unused-range").hint
    assert hint.endswith("data.value_range=0,4095")
    assert not check_data(tmp_path, DataSettings(value_range=(0, 4095))).findings
    write("images/7.tif", picture(7, 48, 64))
    assert finding(check_data(tmp_path), "mixed-image-types").files == ("images/7.tif",)


def test_images_saved_from_values_between_0_and_1(make_folder, write, picture):
    root = make_folder(blobs())
    write("images/3.png", (picture(3, 48, 64) > 128).astype(np.uint8))
    assert finding(check_data(root), "almost-black-images").files == ("images/3.png",)


def test_links(make_folder):
    root = make_folder(blobs())
    (root / "images/again").symlink_to(root)
    (root / "images/lost.png").symlink_to(root / "nowhere.png")
    (root / "images/self.png").symlink_to(root / "images/self.png")
    report = check_data(root)
    assert finding(report, "link-loop").files == ("images/again",)
    assert finding(report, "broken-link").files == ("images/lost.png", "images/self.png")


def test_names_that_only_look_different(make_folder, write, picture):
    root = make_folder(blobs())
    for name in ("a", "A"):
        write(f"images/{name}.png", picture(50 + ord(name), 48, 64))
        write(f"masks/{name}.png", BLOB)
    if len(list(root.glob("images/[aA].png"))) < 2:
        pytest.skip("this file system keeps one of two such names")
    write(f"images/{unicodedata.normalize('NFD', 'é')}.png", picture(99, 48, 64))
    write(f"masks/{unicodedata.normalize('NFC', 'é')}.png", BLOB)
    report = check_data(root)
    assert set(finding(report, "names-alike").files) == {
        "images/A.png",
        "images/a.png",
        "masks/A.png",
        "masks/a.png",
    }
    assert len(finding(report, "names-in-two-forms").files) == 2


def age(root, seconds: float = 3600.0) -> None:
    for path in root.rglob("*.png"):
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)


@pytest.fixture
def opened(monkeypatch):
    """The names of the mask files that are opened."""
    from segtune.data import files

    seen: list[str] = []
    real = files._mask_file
    monkeypatch.setattr(
        files, "_mask_file", lambda image, path: (seen.append(path.name), real(image, path))[1]
    )
    return seen


def test_unchanged_files_are_not_opened_again(make_folder, write, opened, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGTUNE_DATA_CACHE", str(tmp_path / "cache"))
    root = make_folder([*blobs(19), np.full((48, 64), IGNORE_INDEX, np.uint8)])
    check_data(root)
    assert len(opened) == 40 and len(list((tmp_path / "cache").glob("*"))) == 0  # too new to be remembered
    age(root)
    before = check_data(root)
    opened.clear()
    after = check_data(root)
    assert opened == [] and after.to_dict() == before.to_dict() and after.text() == before.text()
    assert len(check_data(root, DataSettings(cache=False)).findings) == len(before.findings)
    assert len(opened) == 40
    opened.clear()
    write("masks/4.png", BLOB.T)
    assert "size-mismatch" in codes(check_data(root)) and set(opened) == {"4.png"}
    opened.clear()
    (root / "masks/5.png").write_bytes(b"x")
    age(root)
    for _ in range(2):
        assert "unreadable-file" in codes(check_data(root))


def test_spellings_of_a_root_and_parts_of_the_data_share_their_memory(
    make_folder, opened, tmp_path, monkeypatch
):
    monkeypatch.setenv("SEGTUNE_DATA_CACHE", str(tmp_path / "cache"))
    root = make_folder(blobs())
    age(root)
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(root)
    check_data(root)
    for spelling in (link, tmp_path.parent / tmp_path.name / "images" / ".."):
        opened.clear()
        check_data(spelling, DataSettings(limit=3))
        check_data(spelling)
        assert opened == []
    monkeypatch.chdir(tmp_path.parent)
    check_data(tmp_path.name)
    assert opened == []
    inverted = DataSettings(values={0: 1, 1: 0})
    check_data(root, inverted)
    assert opened  # read in another way
    opened.clear()
    check_data(root)
    check_data(root, inverted)
    assert opened == []


@pytest.mark.parametrize("tree", ["coco", "labelme", "hf_dataset"])
def test_other_formats_are_remembered_too(tree, tmp_path, monkeypatch):
    from segtune.data import files
    from tests import trees

    root = tmp_path / "data"
    if tree == "hf_dataset":
        pytest.importorskip("datasets")
        trees.parquet(root)
    else:
        root.mkdir()
        getattr(trees, tree)(root)
    monkeypatch.setenv("SEGTUNE_DATA_CACHE", str(tmp_path / "cache"))
    for path in root.rglob("*"):
        os.utime(path, (1e9, 1e9))
    before = check_data(root).to_dict()
    decoded = []
    real = files._upright
    monkeypatch.setattr(files, "_upright", lambda *given: (decoded.append(given), real(*given))[1])
    assert check_data(root).to_dict() == before and (tree == "hf_dataset" or decoded == [])
    looked = len(decoded)
    check_data(root, DataSettings(cache=False))
    assert len(decoded) > 2 * looked
    if tree == "coco":
        decoded.clear()
        text = (root / "annotations.json").read_text()
        (root / "annotations.json").write_text(text.replace("20", "19"))
        check_data(root)
        assert decoded  # the objects of one image have changed


@pytest.mark.parametrize("content", [b"", b"x", b"{}", "cut"])
def test_a_damaged_memory_is_done_without(make_folder, tmp_path, monkeypatch, content):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SEGTUNE_DATA_CACHE", str(folder))
    root = make_folder(blobs())
    age(root)
    before = check_data(root).to_dict()
    files = list(folder.glob("*.json.gz"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:-20] if content == "cut" else content)
    assert check_data(root).to_dict() == before == check_data(root).to_dict()


def test_the_memory_is_bounded(make_folder, tmp_path, monkeypatch):
    from segtune.data import remembered

    monkeypatch.setenv("SEGTUNE_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "MAX_BYTES", 100)
    root = make_folder(blobs())
    age(root)
    check_data(root)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_done_without(make_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGTUNE_DATA_CACHE", str(tmp_path / "file" / "cache"))
    root = make_folder(blobs())
    age(root)
    assert not check_data(root).findings


def test_inverted_polyps(shared_data, tmp_path):
    """Real masks the other way round are recognised; as they are published they are not."""
    source = shared_data / "cvc612"
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for path in sorted((source / "masks").iterdir())[:200:8]:
        image = next((source / "images").glob(f"{path.stem}.*"))
        (tmp_path / "images" / image.name).symlink_to(image)
        Image.eval(Image.open(path).convert("L"), lambda v: 255 - v).save(
            tmp_path / "masks" / f"{path.stem}.png"
        )
    assert "inverted-masks" in codes(check_data(tmp_path))
