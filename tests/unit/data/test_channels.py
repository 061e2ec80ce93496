"""Images with other channels than red, green and blue, and with other values than 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from segtune.data.base import DataIndex
from segtune.data.check import check_data
from segtune.data.open import open_data
from segtune.data.preview import write_preview
from segtune.data.settings import DataSettings
from segtune.errors import DataError
from tests import trees


@pytest.fixture
def aerial(tmp_path):
    """Writes images of any number of channels beside masks; returns the root and the arrays."""

    def make(channels: int, dtype: type = np.uint8, scale: float = 200):
        arrays = []
        for seed in range(4):
            random = np.random.default_rng(seed)
            array = (random.random((trees.HEIGHT, trees.WIDTH, channels)) * scale).astype(dtype)
            path = tmp_path / "images" / f"{seed}.tif"
            path.parent.mkdir(exist_ok=True)
            kind = "rgb" if channels in (3, 4) else "minisblack"
            tifffile.imwrite(path, array, photometric=kind, planarconfig="contig")
            trees.save_mask(tmp_path / "masks" / f"{seed}.png", trees.grid([0, 1]))
            arrays.append(array)
        return tmp_path, arrays

    return make


def images(index: DataIndex):
    return [index.reader.image(sample) for sample in index.samples]


def test_all_of_more_than_four_channels_reach_the_model(aerial):
    root, arrays = aerial(6)
    index = open_data(root)
    assert index.channels == 6 and "images have 6 channels" in index.evidence
    assert all((image == array).all() for image, array in zip(images(index), arrays, strict=True))
    assert check_data(index).ok
    with Image.open(write_preview(index, root / "sheet.png")) as sheet:
        assert sheet.mode == "RGB"


@pytest.mark.parametrize("bands", [(5, 0, 2), (3,), (1, 1)])
def test_chosen_channels(aerial, bands):
    root, arrays = aerial(6)
    index = open_data(root, DataSettings(bands=bands))
    assert index.channels == len(bands)
    expected = (array[:, :, list(bands)] for array in arrays)
    assert all((image == array).all() for image, array in zip(images(index), expected, strict=True))
    assert check_data(index).ok and write_preview(index, root / "sheet.png").is_file()


def test_the_fourth_channel_is_dropped_unless_it_is_asked_for(aerial):
    root, arrays = aerial(4)
    plain, infrared = open_data(root), open_data(root, DataSettings(bands=(3, 0, 1)))
    assert plain.channels == infrared.channels == 3
    assert (images(plain)[0] == arrays[0][:, :, :3]).all()
    assert (images(infrared)[0] == arrays[0][:, :, [3, 0, 1]]).all()


def test_channels_that_are_not_there(aerial):
    root, _ = aerial(5)
    index = open_data(root, DataSettings(bands=(0, 5)))
    with pytest.raises(DataError, match=r"data\.bands=0,5, but the image has 5 channels"):
        images(index)
    assert not check_data(index).ok


def test_images_of_different_numbers_of_channels_are_found(aerial):
    root, _ = aerial(6)
    other = np.zeros((trees.HEIGHT, trees.WIDTH, 5), np.uint8)
    tifffile.imwrite(root / "images" / "3.tif", other, photometric="minisblack", planarconfig="contig")
    [error] = [finding for finding in check_data(root).findings if finding.severity == "error"]
    assert error.files == ("images/3.tif",) and "5 channels, others give 6" in error.message


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_values_are_stretched_as_stated(aerial, dtype):
    root, arrays = aerial(5, dtype, scale=10_000)
    if dtype is np.float32:
        with pytest.raises(DataError, match=r"values of type float32 from .*\n.*data\.value_range"):
            images(open_data(root))
    index = open_data(root, DataSettings(value_range=(1000, 6000)))
    for image, array in zip(images(index), arrays, strict=True):
        assert image.dtype == np.float32
        assert image == pytest.approx(np.clip((array.astype(float) - 1000) / 5000, 0, 1), abs=1e-5)


def test_16_bits_stay_as_they_are(aerial):
    root, arrays = aerial(3, np.uint16, scale=60_000)
    assert all((image == array).all() for image, array in zip(images(open_data(root)), arrays, strict=True))


def test_not_a_number_is_refused(aerial):
    root, arrays = aerial(5, np.float32)
    arrays[0][0, 0, 0] = np.nan
    tifffile.imwrite(root / "images" / "0.tif", arrays[0], photometric="minisblack", planarconfig="contig")
    with pytest.raises(DataError, match="no numbers"):
        images(open_data(root, DataSettings(value_range=(0, 200))))


def test_the_range_must_not_be_empty():
    with pytest.raises(ValueError, match="not below white"):
        DataSettings(value_range=(5, 5))


@pytest.mark.parametrize("make", [trees.coco, trees.labelme, trees.saved_dataset])
def test_other_formats_choose_channels_too(tmp_path, make):
    if make is trees.saved_dataset:
        pytest.importorskip("datasets")
    root = make(tmp_path / "data")
    plain, swapped = open_data(root), open_data(root, DataSettings(bands=(2, 0)))
    assert swapped.channels == 2
    assert (images(swapped)[0] == images(plain)[0][:, :, [2, 0]]).all()


def test_prediction_takes_the_same_channels(aerial):
    """What an adapter's description holds, by way of JSON, reads new images as the run did."""
    import json

    from segtune.engine import predict
    from segtune.engine.infer import InferenceSettings

    root, arrays = aerial(6, np.uint16, scale=6000)
    data = DataSettings(bands=(5, 0), value_range=(0, 6000))
    stored = json.loads(json.dumps(InferenceSettings.from_data(data, "32").to_dict()))
    settings = InferenceSettings.from_dict(stored)
    rule = predict.ChannelRule(bands=settings.bands, value_range=settings.value_range)
    expected = images(open_data(root, data))[0]
    assert (predict.read_image(root / "images" / "0.tif", rule) == expected).all()
    assert expected.shape[2] == 2 and expected.max() <= arrays[0].max() / 6000 + 1e-6
