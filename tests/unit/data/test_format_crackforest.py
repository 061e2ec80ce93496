from __future__ import annotations

import numpy as np
import pytest

from segtune.data.check import check_data
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError
from tests import trees


@pytest.mark.parametrize("flat", [False, True])
def test_cracks_are_class_1(tmp_path, flat):
    index = open_data(trees.crackforest(tmp_path, flat=flat))
    assert index.format == "crackforest" and index.classes.names == ("background", "crack")
    assert [sample.name for sample in index.samples] == ["000", "001", "002"]
    assert (index.reader.mask(index.samples[0]) == trees.grid([0, 1, 0])).all()
    assert check_data(tmp_path).ok


def test_other_values_are_an_error_until_they_are_mapped(tmp_path):
    from scipy.io import savemat

    trees.crackforest(tmp_path)
    savemat(tmp_path / "groundTruth" / "001.mat", {"groundTruth": {"Segmentation": trees.grid([1, 2, 3])}})
    errors = [finding for finding in check_data(tmp_path).findings if finding.severity == "error"]
    assert [(e.code, e.files) for e in errors] == [("value-outside-classes", ("groundTruth/001.mat",))]
    settings = DataSettings(values={1: 0, 2: 1, 3: 1}, classes=("road", "crack"))
    index = open_data(tmp_path, settings)
    assert (index.reader.mask(index.samples[1]) == trees.grid([0, 1, 1])).all()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"MATLAB 5.0 MAT-file" + b"\1" * 300,
        {"other": 1},
        {"groundTruth": {"Segmentation": "x"}},
    ],
)
def test_broken_files_are_named(tmp_path, content):
    from scipy.io import savemat

    trees.crackforest(tmp_path)
    path = tmp_path / "groundTruth" / "001.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    index = open_data(tmp_path)
    with pytest.raises(DataError, match=r"001\.mat"):
        index.reader.mask(index.samples[1])
    errors = [finding for finding in check_data(tmp_path).findings if finding.severity == "error"]
    assert [(e.code, e.files) for e in errors] == [("unreadable-file", ("groundTruth/001.mat",))]


def test_real_files(shared_data):
    from scipy.io import loadmat

    root = shared_data / "formats" / "mat"
    index = open_data(root)
    assert index.format == "crackforest" and len(index.samples) == 2
    for sample in index.samples:
        stored = loadmat(root / f"{sample.name}.mat")["groundTruth"][0, 0]["Segmentation"]
        mask = index.reader.mask(sample)
        assert (mask == (stored == 2)).all() and mask.shape == index.reader.image(sample).shape[:2]
        assert 0 < np.mean(mask) < 0.05
