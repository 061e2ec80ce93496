"""Files that claim more than a machine holds, or whose headers were changed at will: refused by name."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segtune.data.array_cache import ArrayCache
from segtune.data.files import MAX_BYTES, image_size, read_image, read_mask_values
from segtune.data.volumes.nifti import MAX_VOXELS, read_canonical, read_header
from segtune.data.volumes.scan import Scan, Unpacker
from segtune.errors import DataError, SegtuneError

RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def nifti() -> bytearray:
    import nibabel

    voxels = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.int16)
    return bytearray(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes())


def test_a_volume_that_claims_too_much_is_refused_by_its_header(tmp_path):
    content = nifti()
    struct.pack_into("<8h", content, 40, 3, 20_000, 20_000, 20_000, 1, 1, 1, 1)
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(bytes(content)))
    assert MAX_VOXELS < 20_000**3
    for read in (read_header, read_canonical):
        with pytest.raises(DataError, match="20000x20000x20000 voxels, more than"):
            read(path)


@pytest.mark.parametrize(("code", "said"), [(128, "colours"), (2304, "colours"), (32, "complex64")])
def test_voxels_that_are_no_numbers_are_refused(tmp_path, code, said):
    content = nifti() + bytes(2000)
    struct.pack_into("<h", content, 70, code)
    path = tmp_path / "coloured.nii"
    path.write_bytes(content)
    for read in (read_header, read_canonical):
        with pytest.raises(DataError, match=rf"coloured\.nii: its voxels are {said}"):
            read(path)


def test_a_tiff_that_claims_too_many_channels_is_refused_by_its_header(tmp_path):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((8, 8, 6), np.uint16), photometric="minisblack", planarconfig="contig")
    content = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tags = {tag.name: tag for tag in file.pages.first.tags}
    for name, value in (("ImageWidth", 20_000), ("ImageLength", 20_000), ("SamplesPerPixel", 60_000)):
        tag = tags[name]
        struct.pack_into({1: "<B", 3: "<H", 4: "<I"}[int(tag.dtype)], content, tag.valueoffset, value)
    path = tmp_path / "bomb.tif"
    path.write_bytes(content)
    assert MAX_BYTES < 20_000**2 * 60_000
    for read in (read_image, read_mask_values, image_size):
        with pytest.raises(DataError, match=r"bomb\.tif"):
            read(path)


@RELAXED
@given(data=st.data())
def test_volumes_with_damaged_headers(tmp_path, data):
    content = nifti()
    for _ in range(data.draw(st.integers(1, 6))):
        # Sizes, types, offset and scaling stand between 40 and 124; the affine from 252 on.
        place = data.draw(st.one_of(st.integers(40, 123), st.integers(252, 347), st.integers(0, 347)))
        content[place] = data.draw(st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255)))
    path = tmp_path / "damaged.nii"
    path.write_bytes(content)
    cache = ArrayCache(folder=tmp_path / "cache", limit=1e6)
    unpacker = Unpacker(cache=cache, axis="axial", percentiles=(0.5, 99.5))
    for read in (
        lambda: read_header(path),
        lambda: unpacker.scan_facts(Scan(path=path), None),
        lambda: unpacker.label_facts(path),
    ):
        try:
            read()
        except SegtuneError as error:
            assert "damaged.nii" in str(error)
