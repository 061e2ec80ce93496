"""How the coding of masks is found out, and what class maps come of it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segtune.data.open import open_data
from segtune.data.palette import CAMVID, CITYSCAPES, KNOWN_PALETTES, VOC, default_palette
from segtune.data.settings import DataSettings
from segtune.errors import DataError, UsageError


def labels(num_classes: int, seed: int = 0, height: int = 24, width: int = 32) -> np.ndarray:
    """Random regions that hold every class."""
    coarse = np.random.default_rng(seed).integers(0, num_classes, (6, 8))
    coarse.flat[:num_classes] = np.arange(num_classes)
    return np.kron(coarse, np.ones((height // 6, width // 8), np.int64)).astype(np.uint8)


def opened(root, **settings):
    index = open_data(root, DataSettings(**settings))
    masks = {sample.name: index.reader.mask(sample) for sample in index.samples}
    return index, masks


def coded(index) -> str:
    return index.details["masks"]


def codes(index) -> set[str]:
    return {finding.code for finding in index.findings}


def test_index(make_folder):
    truth = [labels(5, seed) for seed in range(3)]
    index, masks = opened(make_folder(truth))
    assert (coded(index), index.classes.num_classes) == ("index", 5)
    assert index.classes.names == ("class_0", "class_1", "class_2", "class_3", "class_4")
    assert all((masks[str(i)] == truth[i]).all() and masks[str(i)].dtype == np.uint8 for i in range(3))
    assert any("values 0-4 -> 5 classes (from all 3 masks)" in line for line in index.evidence)


def test_classes_are_counted_over_all_masks(make_folder):
    truth = [labels(3)] * 80 + [labels(7)]
    index, _ = opened(make_folder(truth))
    assert index.classes.num_classes == 7


def test_255_is_ignored(make_folder):
    truth = labels(4)
    truth[0] = 255
    index, masks = opened(make_folder([truth] * 3))
    assert index.classes.num_classes == 4 and (masks["0"] == truth).all()


@pytest.mark.parametrize("largest", [20, 33, 39])
def test_many_classes_with_ignored_borders_are_not_soft_binary(make_folder, largest):
    """Nearly all pixels are close to 0 or 255 here too, as in VOC."""
    truth = labels(largest + 1)
    truth[:, ::4] = 255
    index, masks = opened(make_folder([truth] * 2))
    assert (coded(index), index.classes.num_classes) == ("index", largest + 1)
    assert (masks["0"] == truth).all()


def test_150_classes(make_folder):
    truth = (np.arange(60 * 60) // 24 % 150).reshape(60, 60).astype(np.uint8)
    index, masks = opened(make_folder([truth] * 2))
    assert (coded(index), index.classes.num_classes) == ("index", 150)
    assert (masks["0"] == truth).all()


def test_stated_ignore_index(make_folder):
    truth = labels(12)
    root = make_folder([truth] * 3)
    assert opened(root)[0].classes.num_classes == 12
    index, masks = opened(root, ignore_index=11)
    assert index.classes.num_classes == 11 and index.classes.ignore_index == 255
    assert index.details["ignored_value_in_files"] == 11
    assert (masks["0"] == np.where(truth == 11, 255, truth)).all()


def test_ignored_zero_moves_the_rest_down(make_folder):
    truth = labels(5)
    index, masks = opened(make_folder([truth] * 3), ignore_index=0)
    assert index.classes.num_classes == 4
    assert (masks["0"] == np.where(truth == 0, 255, truth - 1)).all()
    assert any("move down by one" in line for line in index.evidence)


@pytest.mark.parametrize(("names", "moved"), [("abcd", 1), ("abcde", 0)])
def test_ignored_zero_with_names(make_folder, names, moved):
    """A class map with a name for every value keeps its numbers, even though one is ignored."""
    truth = labels(5)
    index, masks = opened(make_folder([truth] * 3), ignore_index=0, classes=tuple(names))
    assert index.classes.names == tuple(names)
    assert (masks["0"] == np.where(truth == 0, 255, truth - moved)).all()


def test_value_map(make_folder):
    truth = np.choose(labels(4), [7, 8, 11, 26]).astype(np.uint8)
    index, masks = opened(make_folder([truth] * 3), values={7: 0, 8: 1, 11: 1, 26: 255})
    assert index.classes.num_classes == 2
    assert (masks["0"] == np.choose(labels(4), [0, 1, 1, 255])).all()
    with pytest.raises(UsageError, match="maps to 5"):
        opened(index.root, values={7: 5}, classes=("a", "b"))
    with pytest.raises(UsageError, match="maps to -1"):
        opened(index.root, values={7: -1})
    with pytest.raises(UsageError, match="no mask value"):
        opened(index.root, values={70000: 1})


def test_values_that_mean_no_class_are_refused_or_ignored(make_folder):
    root = make_folder([labels(5)] * 3)
    index = open_data(root, DataSettings(classes=("a", "b", "c")))
    with pytest.raises(DataError, match=r"0\.png: the mask holds the values 3, 4"):
        index.reader.mask(index.samples[0])
    _, masks = opened(root, classes=("a", "b", "c"), allow=("value-outside-classes",))
    assert (masks["0"] == np.where(labels(5) > 2, 255, labels(5))).all()


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 128), (0, 200), (40, 200)])
def test_binary_of_two_values(make_folder, low, high):
    truth = labels(2)
    index, masks = opened(make_folder([np.where(truth, high, low).astype(np.uint8)] * 3))
    assert coded(index) == "binary" and index.classes.names == ("background", "foreground")
    assert (masks["0"] == truth).all()


def test_binary_of_sixteen_bits(make_folder):
    index, masks = opened(make_folder([labels(2).astype(np.uint16) * 65535] * 3))
    assert coded(index) == "binary" and (masks["0"] == labels(2)).all()


def test_one_bit_files(make_folder):
    index, masks = opened(make_folder([labels(2).astype(bool)] * 3))
    assert coded(index) == "binary" and (masks["0"] == labels(2)).all()


def test_zero_and_one_is_index(make_folder):
    index, masks = opened(make_folder([labels(2)] * 3))
    assert (coded(index), index.classes.num_classes) == ("index", 2) and (masks["0"] == labels(2)).all()


def test_all_foreground_and_all_background(make_folder):
    full, none = np.full((24, 32), 255, np.uint8), np.zeros((24, 32), np.uint8)
    index, masks = opened(make_folder([full, none, full]))
    assert coded(index) == "binary" and masks["0"].all() and not masks["1"].any()
    index, masks = opened(make_folder([none] * 3))
    assert index.classes.num_classes == 2 and not masks["0"].any()
    index, masks = opened(make_folder([full] * 3))
    assert masks["0"].all() and masks["0"].max() == 1


def soft(truth: np.ndarray, low: int, high: int) -> np.ndarray:
    """Edges between the values, as an anti-aliased drawing has them."""
    big = Image.fromarray((truth * 255).astype(np.uint8)).resize((320, 240), Image.Resampling.BILINEAR)
    return (low + np.asarray(big) / 255 * (high - low)).astype(np.uint8)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 237), (10, 250)])
def test_soft_edges(make_folder, low, high):
    truth = np.zeros((24, 32), np.uint8)
    truth[6:18, 4:20] = 1
    index, masks = opened(make_folder([soft(truth, low, high)] * 3))
    assert coded(index) == "binary"
    assert any("soft edges" in line and "grey values" in line for line in index.evidence)
    assert abs(masks["0"].mean() - truth.mean()) < 0.01


def test_jpeg_noise(make_folder):
    truth = np.zeros((64, 64), np.uint8)
    truth[10:40, 20:50] = 255
    rgb = np.repeat(truth[:, :, None], 3, axis=2)
    index, masks = opened(make_folder([rgb] * 3, suffix=".jpg", quality=60))
    assert coded(index) == "binary" and "lossy-masks" not in codes(index)
    assert (masks["0"] == (truth > 0)).all()


def test_class_numbers_in_jpeg_are_doubted(make_folder):
    index, _ = opened(make_folder([labels(6)] * 3, suffix=".jpg"))
    assert coded(index) == "index" and "lossy-masks" in codes(index)


def test_grey_levels(make_folder):
    truth = labels(4)
    index, masks = opened(make_folder([truth * 85] * 3))
    assert index.classes.num_classes == 4 and (masks["0"] == truth).all()
    assert "grey-levels" in codes(index)


def test_stated_threshold(make_folder):
    values = labels(4) * 50
    root = make_folder([values] * 3)
    _, masks = opened(root, threshold=60)
    assert (masks["0"] == (values > 60)).all()
    with pytest.raises(UsageError, match="2 classes"):
        open_data(root, DataSettings(threshold=60, classes=("a", "b", "c")))


def test_binary_with_an_ignored_value(make_folder):
    values = np.choose(labels(3), [0, 255, 128]).astype(np.uint8)
    _, masks = opened(make_folder([values] * 3), masks="binary", ignore_index=128)
    assert (masks["0"] == np.choose(labels(3), [0, 1, 255])).all()


def test_mixed_codings_are_an_error(make_folder):
    one, full = labels(2), labels(2, 1) * 255
    index, _ = opened(make_folder([one, one, full]))
    assert "mixed-codings" in codes(index)
    index, masks = opened(index.root, threshold=0)
    assert (masks["0"] == one).all() and (masks["2"] == (full > 0)).all()
    true_ignore = labels(2)
    true_ignore[:3] = 255
    index, _ = opened(make_folder([one, true_ignore, one]))
    assert "mixed-codings" not in codes(index)


def test_palette_files(make_folder):
    truth, palette = labels(5), VOC.colours[:5]
    index, masks = opened(make_folder([truth] * 3, palette=palette))
    assert coded(index) == "palette" and (masks["0"] == truth).all()
    assert index.classes.palette == palette


def test_palette_with_ignored_border(make_folder):
    truth = labels(5)
    truth[0] = 255
    palette = [*VOC.colours, *[(1, 1, i) for i in range(234)], (224, 224, 192)]
    index, masks = opened(make_folder([truth] * 3, palette=palette))
    assert index.classes.num_classes == 5 and (masks["0"] == truth).all()


def test_palettes_that_differ_make_colours_decide(write, picture, tmp_path):
    for i, order in enumerate([(0, 1, 2), (2, 1, 0)]):
        colours = [[(0, 0, 0), (255, 0, 0), (0, 0, 255)][k] for k in order]
        write(f"images/{i}.png", picture(i))
        write(f"masks/{i}.png", np.array(order, np.uint8)[labels(3)], palette=colours)
    index, masks = opened(tmp_path)
    assert coded(index) == "rgb" and (masks["0"] == masks["1"]).all()


def coloured(truth: np.ndarray, colours) -> np.ndarray:
    return np.array(colours, np.uint8)[truth]


def test_colours_found(make_folder):
    colours = [(10, 200, 30), (200, 10, 30), (30, 10, 200)]
    truth = labels(3)
    index, masks = opened(make_folder([coloured(truth, colours)] * 3))
    assert (coded(index), index.classes.num_classes) == ("rgb", 3)
    assert index.classes.palette == tuple(sorted(colours))
    assert index.classes.names == ("colour_0ac81e", "colour_1e0ac8", "colour_c80a1e")
    assert (np.array(index.classes.palette)[masks["0"]] == coloured(truth, colours)).all()


@pytest.mark.parametrize("known", KNOWN_PALETTES, ids=lambda known: known.title)
def test_known_palettes(make_folder, known):
    num = len(known.colours)
    truth = labels(num)
    colours = coloured(truth, known.colours)
    colours[0] = known.ignored[0]
    index, masks = opened(make_folder([colours] * 2))
    assert index.classes.names == known.names
    expected = truth.copy()
    if known.ignored[0] not in known.colours:
        expected[0] = 255
    assert (masks["0"] == expected).all()


def test_a_few_primary_colours_are_nobodys_palette(make_folder):
    index, _ = opened(make_folder([coloured(labels(3), VOC.colours[:3])] * 2))
    assert index.classes.num_classes == 3


def test_known_palettes_are_told_apart():
    for known in KNOWN_PALETTES:
        matching = [other for other in KNOWN_PALETTES if other.matches({*known.colours, *known.ignored})]
        assert matching == [known]
    assert {len(VOC.names), len(CITYSCAPES.names), len(CAMVID.names)} == {21, 19, 11}


def test_colours_of_the_description(make_folder, tmp_path):
    truth = labels(3)
    colours = [(200, 10, 30), (10, 200, 30), (0, 0, 0)]
    root = make_folder([coloured(truth, colours)] * 3)
    (root / "dataset.yaml").write_text(
        "classes: {fish: [200, 10, 30], weed: [10, 200, 30]}\nignored_colours: [[0, 0, 0]]"
    )
    index, masks = opened(root)
    assert index.classes.names == ("fish", "weed")
    assert (masks["0"] == np.choose(truth, [0, 1, 255])).all()
    (root / "dataset.yaml").write_text("classes: {fish: [200, 10, 30], weed: [10, 200, 30]}")
    index = open_data(root)
    with pytest.raises(DataError, match=r"the colours \(0, 0, 0\)"):
        index.reader.mask(index.samples[0])


def test_lossy_colours_need_a_description_and_then_go_to_the_nearest(make_folder):
    truth = np.kron(labels(3), np.ones((8, 8), np.uint8))
    colours = [(220, 20, 20), (20, 220, 20), (20, 20, 220)]
    root = make_folder([coloured(truth, colours)] * 3, suffix=".jpg", quality=95, subsampling=0)
    with pytest.raises(DataError, match="lossy") as caught:
        open_data(root)
    assert "dataset.yaml" in str(caught.value.hint)
    (root / "dataset.yaml").write_text("classes: {a: [220, 20, 20], b: [20, 220, 20], c: [20, 20, 220]}")
    _, masks = opened(root, allow=("value-outside-classes",))
    assert (masks["0"] == truth).mean() > 0.98


def test_photos_as_masks_are_refused(make_folder, picture):
    with pytest.raises(DataError, match="or more colours"):
        open_data(make_folder([picture(9)] * 3))


def test_instance_numbers_are_refused(make_folder):
    values = labels(4).astype(np.uint16) + 26000
    with pytest.raises(DataError, match="26003") as caught:
        open_data(make_folder([values] * 3))
    assert "instance" in str(caught.value.hint)


def test_a_stray_value_is_doubted(make_folder):
    stray = labels(4)
    stray[0, 0] = 30
    index, _ = opened(make_folder([labels(4), stray, labels(4)]))
    finding = next(finding for finding in index.findings if finding.code == "sparse-classes")
    assert finding.files == ("masks/1.png",) and "30" in finding.message


def test_stated_coding_against_the_files(make_folder):
    root = make_folder([coloured(labels(3), CAMVID.colours[:3])] * 3)
    with pytest.raises(UsageError, match="hold colours"):
        open_data(root, DataSettings(masks="index"))


def test_names_are_counted(make_folder):
    root = make_folder([coloured(labels(3), [(9, 9, 9), (200, 0, 0), (0, 0, 200)])] * 3)
    with pytest.raises(UsageError, match="2 classes are named, but the masks have 3 colours"):
        open_data(root, DataSettings(classes=("a", "b")))


@pytest.mark.parametrize("num_classes", [2, 12, 40, 255])
def test_default_colours_are_distinct(num_classes):
    palette = default_palette(num_classes)
    assert len(set(palette)) == len(palette) == num_classes
    assert palette[:2] == default_palette(2)
