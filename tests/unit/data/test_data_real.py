"""Real data sets, each read right and saying how; the numbers are properties of the data."""

from __future__ import annotations

import numpy as np
import pytest

from segtune.data.base import Severity
from segtune.data.check import check_data
from segtune.data.open import open_data
from segtune.data.settings import DataSettings

CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "person",
    "cyclist",
)


def totals(index, every: int = 1) -> list[int]:
    """Pixels of each class, and of the ignored value as the last, over every n-th sample."""
    counts = np.zeros(256, np.int64)
    for sample in index.samples[::every]:
        mask = index.reader.mask(sample)
        assert mask.shape == index.reader.image(sample).shape[:2]
        counts += np.bincount(mask.ravel(), minlength=256)
    return [*counts[: index.classes.num_classes].tolist(), int(counts[255])]


def worst(report) -> set[tuple[str, str]]:
    return {(f.severity.value, f.code) for f in report.findings if f.severity is not Severity.INFO}


def test_camvid(shared_data):
    index = open_data(shared_data / "camvid")
    assert (index.format, index.details["masks"], index.classes.num_classes) == ("folder", "index", 12)
    assert index.split_sizes == {"train": 367, "val": 101, "test": 233}
    assert index.findings == ()
    assert any("values 0-11 -> 12 classes (from all 701 masks)" in line for line in index.evidence)


def test_camvid_with_its_void_stated(shared_data):
    plain = totals(open_data(shared_data / "camvid"), every=50)
    index = open_data(shared_data / "camvid", DataSettings(ignore_index=11))
    assert index.classes.num_classes == 11
    assert totals(index, every=50) == plain[:12]
    named = open_data(shared_data / "camvid", DataSettings(ignore_index=11, classes=CAMVID_CLASSES))
    assert named.classes.names == CAMVID_CLASSES and totals(named, every=50) == plain[:12]


def test_camvid_by_clip(shared_data):
    index = open_data(shared_data / "camvid", DataSettings(group="^([^_]+)_"))
    assert {sample.group for sample in index.samples} == {"0001TP", "0006R0", "0016E5", "Seq05VD"}
    # The published split cuts two clips in halves, and the check says so.
    assert [finding.code for finding in index.findings] == ["group-across-splits"]


def test_epfl_roads(shared_data):
    report = check_data(shared_data / "epfl_roads")
    index = report.usable
    assert (index.format, index.details["masks"], index.details["threshold"]) == ("folder", "binary", 127)
    assert index.classes.num_classes == 2 and index.split_sizes == {"train": 70, "val": 15, "test": 15}
    assert any(line.startswith("238 grey values, 98.6% of pixels") for line in index.evidence)
    assert worst(report) == set()
    background, roads, ignored = totals(index)
    assert ignored == 0 and background + roads == 100 * 400 * 400 and 0.19 < roads / (100 * 400 * 400) < 0.21


def test_cvc612(shared_data):
    report = check_data(shared_data / "cvc612")
    index = report.usable
    assert (index.format, index.details["masks"], index.details["threshold"]) == ("manifest", "binary", 127)
    assert index.classes.num_classes == 2 and index.split_sizes == {"train": 408, "val": 95}
    assert len({sample.group for sample in index.samples}) == 24
    assert worst(report) == {("warning", "empty-split")}
    shares = np.array(report.class_pixels["train"]) / sum(report.class_pixels["train"])
    assert shares[1] == pytest.approx(0.091, abs=0.001)


def test_frames_of_one_sequence_in_two_splits_are_found(shared_data):
    """Split frame by frame, a video is full of near duplicates; split by sequence there are none."""
    by_sequence = open_data(shared_data / "cvc612")
    alone = [
        type(s)(name=s.name, image=s.image, mask=s.mask, split="val" if i % 4 == 0 else "train")
        for i, s in enumerate(by_sequence.samples)
    ]
    report = check_data(by_sequence.with_samples(tuple(alone[:120])))
    found = next(f for f in report.findings if f.code == "near-duplicate-across-splits")
    groups = {s.image.relative_to(by_sequence.root).as_posix(): s.group for s in by_sequence.samples}
    pairs = list(zip(found.files[::2], found.files[1::2], strict=True))
    assert len(pairs) > 5 and all(groups[a] == groups[b] for a, b in pairs)


@pytest.mark.parametrize("inner", ["", "Kvasir-SEG"])
def test_jpeg_masks(shared_data, inner):
    report = check_data(shared_data / "formats" / "jpeg_masks" / inner)
    index = report.usable
    assert (index.details["masks"], index.classes.num_classes) == ("binary", 2)
    assert index.split_sizes == {"train": 3, "val": 1, "test": 1}
    assert worst(report) == {("warning", "few-samples")}
    background, foreground, ignored = totals(index)
    assert ignored == 0 and foreground / (background + foreground) == pytest.approx(0.2346, abs=0.01)


def test_voc_rgb(shared_data):
    index = open_data(shared_data / "formats" / "voc_rgb")
    assert (index.details["masks"], index.classes.num_classes) == ("rgb", 21)
    assert index.split_sizes == {"train": 4, "val": 1, "test": 1}
    assert any("7 colours found, all of PASCAL VOC" in line for line in index.evidence)
    present = {
        sample.name: [index.classes.names[c] for c in np.unique(index.reader.mask(sample)) if c != 255]
        for sample in index.samples
    }
    assert present == {
        "0": ["background", "aeroplane"],
        "1": ["background", "aeroplane"],
        "114": ["background", "bird"],
        "120": ["background", "bicycle", "bottle"],
        "166": ["background", "aeroplane"],
        "20": ["background", "sheep"],
    }
    assert totals(index)[-1] > 0


def test_tiff_pairs(shared_data):
    report = check_data(shared_data / "formats" / "tiff_pairs")
    index = report.usable
    assert (index.details["masks"], index.classes.num_classes) == ("binary", 2)
    assert index.split_sizes == {"train": 1, "val": 1, "test": 1}
    assert index.reader.image(index.samples[0]).shape == (288, 384, 3)
    background, foreground, _ = totals(index)
    assert foreground / (background + foreground) == pytest.approx(0.1733, abs=0.001)


def test_palette_and_true_colour_in_one_folder(shared_data):
    """The same city labels as palette files and as colours: colours decide, and agree."""
    index = open_data(shared_data / "formats" / "gta5", DataSettings(format="folder"))
    assert (index.details["masks"], index.classes.num_classes) == ("rgb", 19)
    assert index.classes.names[0] == "road" and totals(index)[0] > 100_000


def test_labelme_export(shared_data):
    root = shared_data / "formats" / "labelme" / "data_dataset_voc"
    index = open_data(root)
    assert index.details["masks"] == "palette" and index.classes.num_classes == 19
    for sample in index.samples:
        stored = np.load(root / f"{sample.name}.npy")
        assert (index.reader.mask(sample) == np.where(stored == -1, 255, stored)).all()


def test_image_tiles_in_dir_folders(shared_data):
    index = open_data(shared_data / "formats" / "mmseg" / "pseudo_potsdam_dataset")
    assert (index.format, index.details["masks"], index.classes.num_classes) == ("potsdam", "index", 6)
