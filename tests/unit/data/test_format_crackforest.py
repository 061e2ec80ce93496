from __future__ import annotations

import sys

import numpy as np
import pytest

from segtune.data.check import check_data
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError, MissingExtraError
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


def save_73(path, *, struct: bool = True, **changes):
    """A file as MATLAB writes it with -v7.3: HDF5 behind 512 bytes of header, arrays by columns."""
    h5py = pytest.importorskip("h5py")
    path.unlink(missing_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        group = file.create_group("groundTruth") if struct else file
        group["Segmentation"] = changes.get("mask", trees.grid([1, 2, 1])).T
        group["Boundaries"] = np.zeros((2, 2))
        for name, link in changes.get("links", {}).items():
            group[name] = link
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .")


def test_files_of_version_7_3(tmp_path):
    trees.crackforest(tmp_path)
    old = open_data(tmp_path)
    for path in (tmp_path / "groundTruth").iterdir():
        save_73(path)
    index = open_data(tmp_path)
    assert index.format == "crackforest" and check_data(tmp_path).ok
    mask = index.reader.mask(index.samples[0])
    assert (mask == trees.grid([0, 1, 0])).all() and mask.shape == old.reader.mask(old.samples[0]).shape


def test_version_7_3_without_h5py(tmp_path, monkeypatch):
    trees.crackforest(tmp_path)
    for path in (tmp_path / "groundTruth").iterdir():
        save_73(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    index = open_data(tmp_path)
    assert index.format == "crackforest"
    with pytest.raises(MissingExtraError, match="matlab"):
        index.reader.mask(index.samples[0])


@pytest.mark.parametrize("kind", ["soft", "external", "storage", "cut", "huge"])
def test_hostile_files_of_version_7_3(tmp_path, kind):
    h5py = pytest.importorskip("h5py")
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones((24, 32))
    trees.crackforest(tmp_path / "data")
    path = tmp_path / "data" / "groundTruth" / "001.mat"
    save_73(path)
    with h5py.File(path, "r+") as file:
        group = file["groundTruth"]
        del group["Segmentation"]
        if kind == "soft":
            group["Segmentation"] = h5py.SoftLink("/groundTruth/Boundaries")
        elif kind == "external":
            group["Segmentation"] = h5py.ExternalLink(str(secret), "x")
        elif kind == "storage":
            external = [(str(secret), 0, 24 * 32)]
            group.create_dataset("Segmentation", (24, 32), "u1", external=external)
        elif kind == "huge":
            group.create_dataset(
                "Segmentation", (2**20, 2**20), "u1", chunks=(1024, 1024), compression="gzip"
            )
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:900])
    index = open_data(tmp_path / "data")
    with pytest.raises(DataError, match=r"001\.mat"):
        index.reader.mask(index.samples[1])
