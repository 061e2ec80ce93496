"""NIfTI files: every orientation goes there and back, and the result lies where the image lies."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from segtune.data.volumes.nifti import encode_like, read_canonical, read_header
from segtune.data.volumes.scan import AXES, from_slices, to_slices
from segtune.errors import DataError
from tests.volumes import affine_of, orientations, save


def read_back(content: bytes, folder: Path) -> Path:
    path = folder / "written.nii.gz"
    path.write_bytes(content)
    return path


@settings(max_examples=40, deadline=None)
@given(
    way=st.sampled_from(orientations()),
    spacing=st.tuples(*[st.floats(0.3, 8)] * 3),
    shape=st.tuples(*[st.integers(2, 6)] * 3),
    axis=st.sampled_from(sorted(AXES)),
)
def test_every_orientation_goes_there_and_back(tmp_path_factory, way, spacing, shape, axis):
    folder = tmp_path_factory.mktemp("way")
    stored = np.random.default_rng(0).integers(0, 200, shape, dtype=np.int16)
    affine = affine_of(*way, spacing)
    path = save(folder / "image.nii.gz", stored, affine)
    canonical = read_canonical(path)
    slices = to_slices(canonical, axis)
    assert np.array_equal(from_slices(slices, axis), canonical)
    written = nibabel.load(read_back(encode_like(from_slices(slices, axis), path), folder))
    assert np.array_equal(np.asanyarray(written.dataobj), stored)
    assert np.array_equal(written.affine, nibabel.load(path).affine)
    assert np.allclose(read_header(path).spacing, [spacing[way[0].index(k)] for k in range(3)], rtol=1e-5)


@pytest.mark.parametrize("way", orientations()[::5], ids=str)
def test_slices_show_the_patient_upright(tmp_path, way):
    """A voxel to the right, in front and above is on the left, above and late, however the file is stored."""
    affine = affine_of(*way)
    shape = np.array((5, 6, 7))[list(way[0])]
    stored = np.zeros(shape, np.uint8)
    corners = np.array([[0, size - 1] for size in shape])
    # the file's corner that lies farthest to the right, the front and the head
    place = tuple(corners[axis][int(way[1][axis] > 0)] for axis in range(3))
    stored[place] = 9
    canonical = read_canonical(save(tmp_path / "a.nii", stored, affine))
    assert canonical.shape == (5, 6, 7)
    assert np.argwhere(canonical).tolist() == [[4, 5, 6]]
    assert np.argwhere(to_slices(canonical, "axial")).tolist() == [[6, 0, 0]]
    assert np.argwhere(to_slices(canonical, "coronal")).tolist() == [[5, 0, 0]]
    assert np.argwhere(to_slices(canonical, "sagittal")).tolist() == [[4, 0, 0]]


def test_itk_finds_the_result_in_the_same_place(tmp_path):
    for number, way in enumerate(orientations()[::7]):
        path = save(
            tmp_path / f"{number}.nii.gz", np.zeros((3, 4, 5), np.float32), affine_of(*way, (1, 2, 3))
        )
        written = read_back(encode_like(read_canonical(path).astype(np.uint8), path), tmp_path)
        same_place(path, written)


def test_itk_finds_real_volumes_in_the_same_place(shared_data, tmp_path):
    for path in sorted((shared_data / "formats" / "nifti_orientation").rglob("*.nii.gz")):
        written = read_back(encode_like(read_canonical(path).astype(np.float32), path), tmp_path)
        same_place(path, written)
        first, second = nibabel.load(path), nibabel.load(written)
        assert np.array_equal(first.affine, second.affine)
        assert np.array_equal(first.get_sform(), second.get_sform())
        assert first.header["sform_code"] == second.header["sform_code"]
        assert first.header["qform_code"] == second.header["qform_code"]


def same_place(first: Path, second: Path) -> None:
    images = [SimpleITK.ReadImage(str(path)) for path in (first, second)]
    for read in ("GetOrigin", "GetDirection", "GetSpacing", "GetSize"):
        assert getattr(images[0], read)() == getattr(images[1], read)()
    arrays = [SimpleITK.GetArrayFromImage(image) for image in images]
    assert np.array_equal(*arrays)


def test_scaled_integers_are_scaled(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    voxels = read_canonical(tmp_path / "scaled.nii.gz")
    assert voxels.dtype == np.float32
    assert np.allclose(voxels, np.asarray(nibabel.load(tmp_path / "scaled.nii.gz").dataobj))


def test_the_same_volume_gives_the_same_bytes(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.ones((3, 4, 5), np.uint8))
    assert encode_like(read_canonical(path), path) == encode_like(read_canonical(path), path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"no volume at all", "cannot be read"),
        (gzip.compress(b"no volume at all", mtime=0), "cannot be read"),
        (None, "No such file"),
    ],
)
def test_unreadable_files_are_named(tmp_path, content, said):
    path = tmp_path / "broken.nii.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"broken\.nii\.gz.*{said}"):
        read_canonical(path)


def test_a_truncated_file_is_named(tmp_path):
    whole = save(tmp_path / "cut.nii.gz", np.random.default_rng(0).normal(size=(16, 16, 16)))
    whole.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut\.nii\.gz: the volume cannot be read"):
        read_canonical(whole)


def test_flat_images_and_nowhere_are_refused(tmp_path):
    with pytest.raises(DataError, match="7x8 is no volume"):
        read_header(save(tmp_path / "flat.nii", np.zeros((7, 8))))
    affine = np.eye(4)
    affine[2, 2] = np.nan
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2)), None), tmp_path / "fine.nii")
    assert read_header(tmp_path / "fine.nii").shape == (2, 2, 2)
