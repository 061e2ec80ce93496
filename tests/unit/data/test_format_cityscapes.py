from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segtune.data import files, masks
from segtune.data.check import check_data
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError, SettingsError, UsageError
from tests import trees

# From the published table of labels: number -> class.
CLASS_OF = dict(
    zip([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], range(19), strict=True)
)


def with_options(**options):
    return DataSettings(options=options)


def expected(path, void=255):
    """The class map of a file of label numbers, pixel by pixel."""
    labels = np.asarray(Image.open(path))
    return np.array([[CLASS_OF.get(int(v), void) for v in row] for row in labels], np.uint8)


def test_the_official_tree(tmp_path):
    index = open_data(trees.cityscapes(tmp_path))
    assert index.format == "cityscapes" and index.classes.num_classes == 19
    assert index.classes.names[0] == "road" and index.classes.palette[13] == (0, 0, 142)
    assert [(s.name, s.split, s.group) for s in index.samples] == [
        ("aachen_000000_000010", "train", "aachen"),
        ("bochum_000000_000011", "train", "bochum"),
        ("lindau_000000_000012", "val", "lindau"),
    ]
    assert any("the test split is left out" in line for line in index.evidence)
    for sample in index.samples:
        assert (index.reader.mask(sample) == expected(sample.mask)).all()


def test_coarse_annotations_and_the_extra_frames(tmp_path):
    trees.cityscapes(tmp_path, kind="gtCoarse")
    for kind in ("leftImg8bit", "gtCoarse"):
        (tmp_path / kind / "train" / "bochum").rename(tmp_path / kind / "train_extra")
        (tmp_path / kind / "train_extra").rename(tmp_path / kind / "moved")
        (tmp_path / kind / "train_extra").mkdir()
        (tmp_path / kind / "moved").rename(tmp_path / kind / "train_extra" / "bochum")
    index = open_data(tmp_path)
    assert index.split_sizes == {"train": 2, "val": 1}
    trees.cityscapes(tmp_path)
    fine = open_data(tmp_path)
    assert "labelIds" in fine.samples[0].mask.name and "gtFine" in fine.samples[0].mask.name
    assert [s.name for s in fine.samples if s.group == "bochum"] == ["bochum_000000_000011"]
    coarse = open_data(tmp_path, with_options(annotations="coarse"))
    assert {s.mask.parts[-4] for s in coarse.samples} == {"gtCoarse"}


def test_train_ids_are_used_where_every_frame_has_them(tmp_path):
    trees.cityscapes(tmp_path, train_ids=True)
    index = open_data(tmp_path)
    assert all(sample.mask.stem.endswith("labelTrainIds") for sample in index.samples)
    assert set(np.unique(index.reader.mask(index.samples[0]))) == {0, 1, 2, 13, 18, 255}
    index.samples[0].mask.unlink()
    index = open_data(tmp_path)
    assert all(sample.mask.stem.endswith("labelIds") for sample in index.samples)
    assert not list(tmp_path.rglob("aachen*labelTrainIds*")), "nothing is written"


@pytest.mark.parametrize("train_ids", [False, True])
def test_the_variants_of_the_classes(tmp_path, train_ids):
    trees.cityscapes(tmp_path, train_ids=train_ids)
    plain = open_data(tmp_path)
    twenty = open_data(tmp_path, with_options(classes=20))
    void = open_data(tmp_path, with_options(classes="19+void"))
    every = open_data(tmp_path, with_options(classes=34))
    base = plain.reader.mask(plain.samples[0])
    assert twenty.classes.num_classes == 20 and (twenty.reader.mask(twenty.samples[0]) == base).all()
    assert void.classes.names[19] == "void"
    assert (void.reader.mask(void.samples[0]) == np.where(base == 255, 19, base)).all()
    assert every.classes.num_classes == 34 and every.classes.names[33] == "bicycle"
    labels = np.asarray(Image.open(every.samples[0].mask))
    assert every.samples[0].mask.stem.endswith("labelIds")
    assert (every.reader.mask(every.samples[0]) == labels).all()


def test_opening_reads_one_mask_of_the_test_split_and_no_other(tmp_path, monkeypatch):
    trees.cityscapes(tmp_path)
    opened = []
    real = files._open
    monkeypatch.setattr(files, "_open", lambda path, *rest: opened.append(path.name) or real(path, *rest))
    open_data(tmp_path)
    assert [name for name in opened if "labelIds" in name] == ["berlin_000000_000013_gtFine_labelIds.png"]


def test_options_are_checked(tmp_path):
    trees.cityscapes(tmp_path)
    with pytest.raises(SettingsError, match=r"data.options.clases = 34: .*did you mean classes\?"):
        open_data(tmp_path, with_options(clases=34))
    with pytest.raises(SettingsError, match=r"data.options.annotations = 'x'"):
        open_data(tmp_path, with_options(annotations="x"))
    with pytest.raises(UsageError, match=r"data\.masks is stated"):
        open_data(tmp_path, DataSettings(masks="rgb"))


def test_classes_may_be_renamed_and_values_mapped(tmp_path):
    trees.cityscapes(tmp_path)
    names = tuple(f"c{i}" for i in range(19))
    assert open_data(tmp_path, DataSettings(classes=names)).classes.names == names
    with pytest.raises(UsageError, match="3 classes are named, but masks of Cityscapes"):
        open_data(tmp_path, DataSettings(classes=("a", "b", "c")))
    settings = DataSettings(values={7: 1, 8: 1} | {v: 0 for v in range(34) if v not in (7, 8)})
    index = open_data(tmp_path, settings)
    labels = np.asarray(Image.open(index.samples[0].mask))
    assert (index.reader.mask(index.samples[0]) == np.isin(labels, [7, 8])).all()
    with pytest.raises(UsageError, match="maps to what is no class"):
        open_data(tmp_path, DataSettings(values={7: 5}, classes=("a", "b")))


def test_frames_without_masks(tmp_path):
    trees.cityscapes(tmp_path)
    lost = next(tmp_path.rglob("aachen*labelIds.png"))
    lost.unlink()
    index = open_data(tmp_path)
    [finding] = [f for f in index.findings if f.code == "unmatched-file"]
    assert finding.files == ("leftImg8bit/train/aachen/aachen_000000_000010_leftImg8bit.png",)
    for path in tmp_path.rglob("*labelIds.png"):
        path.unlink()
    with pytest.raises(DataError, match="no two of the same name"):
        open_data(tmp_path)


def test_a_value_that_is_no_label_is_found(tmp_path):
    trees.cityscapes(tmp_path)
    path = next(tmp_path.rglob("aachen*labelIds.png"))
    trees.save_mask(path, trees.grid([7, 99]))
    assert [f.code for f in check_data(tmp_path).findings if f.severity == "error"] == [
        "value-outside-classes"
    ]


def test_real_frames(shared_data):
    index = open_data(shared_data / "formats" / "cityscapes")
    assert index.format == "cityscapes" and index.split_sizes == {"train": 3, "val": 1}
    for sample in index.samples:
        mask = index.reader.mask(sample)
        assert (mask == expected(sample.mask)).all()
        assert mask.shape == index.reader.image(sample).shape[:2]


def test_real_train_ids_agree_with_those_derived(shared_data):
    index = open_data(shared_data / "formats" / "mmseg" / "pseudo_cityscapes_dataset")
    [sample] = index.samples
    stored = np.asarray(Image.open(str(sample.mask).replace("labelIds", "labelTrainIds")))
    derived = expected(str(sample.mask).replace("labelTrainIds", "labelIds"))
    assert sample.mask.stem.endswith("labelTrainIds")
    assert (index.reader.mask(sample) == stored).all()
    # The two files were made smaller one by one and differ by a few pixels at edges.
    assert (derived == stored).mean() > 0.99


def test_colour_files_decode_to_the_same_classes():
    """The colours of a label and its number lead to one class."""
    from segtune.data.street import LABELS, street_coding

    def decode(values):
        stored = np.full((1, 1, *np.shape(values)), values, np.uint8)
        return coding.decode(masks.MaskFile(values=stored, palette=None, lossy=False))

    coding = street_coding("masks", 19).coding
    for number, label in enumerate(LABELS):
        if label.name != "polegroup":  # has the colour of poles
            assert decode(number) == decode(label.colour), label
