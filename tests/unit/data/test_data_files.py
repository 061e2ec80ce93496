"""Image and mask files of every kind, whole and damaged."""

from __future__ import annotations

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from segtune.data.files import (
    MAX_PIXELS,
    image_size,
    read_header,
    read_image,
    read_mask_file,
    read_mask_values,
)
from segtune.errors import DataError

GRADIENT = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"])
def test_every_format_gives_three_channels(write, picture, suffix):
    image = picture()
    path = write(f"a{suffix}", image)
    read = read_image(path)
    assert read.shape == (24, 32, 3) and read.dtype == np.uint8
    assert np.abs(read.astype(int) - image).mean() < 25
    assert image_size(path) == (24, 32)


def test_grey_is_repeated_and_alpha_dropped(write, picture):
    grey = picture()[:, :, 0]
    assert (read_image(write("grey.png", grey)) == grey[:, :, None]).all()
    rgba = np.dstack([picture(), grey])
    assert (read_image(write("rgba.png", rgba)) == rgba[:, :, :3]).all()
    both = np.dstack([grey, 255 - grey])
    path = write("la.png", grey)
    Image.merge("LA", [Image.fromarray(both[:, :, i].copy()) for i in range(2)]).save(path)
    assert (read_image(path) == grey[:, :, None]).all()


def test_palette_images_with_transparency_do_not_warn(tmp_path, picture):
    path = tmp_path / "p.png"
    Image.fromarray(picture()).quantize(16).save(path, transparency=bytes(range(16)))
    assert read_image(path).shape == (24, 32, 3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_kept(write, suffix):
    values = GRADIENT * 80
    path = write(f"a{suffix}", values)
    read = read_image(path)
    assert read.dtype == np.uint16 and (read == values[:, :, None]).all()
    assert (read_mask_values(path) == values).all()


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "LAB"])
def test_other_modes_become_rgb(tmp_path, picture, mode):
    path = tmp_path / "a.tif"
    Image.new(mode, (32, 24), 1).save(path)
    assert read_image(path).shape == (24, 32, 3)


def test_float_images_within_one_are_kept_and_others_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8))
    assert read_image(path).dtype == np.float32
    tifffile.imwrite(path, np.full((6, 8), 300.0, np.float32))
    with pytest.raises(DataError, match="from 300"):
        read_image(path)


def test_tiff_that_pillow_refuses(tmp_path):
    """Sixteen-bit colour, planes one after the other, and an orientation."""
    array = np.random.default_rng(0).integers(0, 65536, (6, 8, 3), dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, photometric="rgb")
    assert (read_image(path) == array).all()
    tifffile.imwrite(path, np.moveaxis(array, -1, 0), photometric="rgb", planarconfig="separate")
    assert (read_image(path) == array).all()
    tifffile.imwrite(path, array, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    assert (read_image(path) == np.rot90(array, -1)).all()
    assert image_size(path) == (8, 6) and read_header(path).rotated


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.rot90(np.fliplr(a)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.fliplr(a), -1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".png", {}), (".tif", {}), (".tif", {"compression": "tiff_lzw"}), (".webp", {"lossless": True})],
)
def test_exif_orientation_is_applied_to_images_and_masks(write, picture, orientation, suffix, options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(f"a{suffix}", picture(), exif=exif, **options)
    expected = UPRIGHT[orientation](picture())
    assert (read_image(path) == expected).all()
    assert (read_mask_values(path) == expected).all()
    assert image_size(path) == expected.shape[:2]
    assert read_header(path).rotated == (orientation > 1)


def test_exif_of_jpeg(write, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write("a.jpg", picture(), exif=exif, quality=95)
    assert np.abs(read_image(path).astype(int) - np.rot90(picture(), -1)).mean() < 8
    assert image_size(path) == (32, 24)


def test_masks_keep_what_is_stored(write, tmp_path):
    labels = (GRADIENT % 5).astype(np.uint8)
    colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    file = read_mask_file(write("p.png", labels, palette=colours))
    assert (file.values == labels).all() and file.palette is not None and file.palette[:5] == tuple(colours)
    assert (read_mask_values(write("l.png", labels)) == labels).all()
    bits = tmp_path / "b.png"
    Image.fromarray(labels > 2).save(bits)
    assert set(np.unique(read_mask_values(bits))) == {0, 255}
    ramp = [(i, i, i) for i in range(256)]
    assert read_mask_file(write("ramp.png", labels, palette=ramp)).palette is None


def test_gif_masks_give_colours(write):
    labels = (GRADIENT % 2).astype(np.uint8)
    values = read_mask_values(write("a.gif", labels, palette=[(255, 255, 255), (0, 0, 0)]))
    assert values.shape == (24, 32, 3) and (values == np.where(labels[:, :, None] == 0, 255, 0)).all()


def test_float_masks_of_whole_numbers(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.array([[0.0, 1.0, 4.0]], np.float32))
    assert read_mask_values(path).tolist() == [[0, 1, 4]]
    tifffile.imwrite(path, np.array([[0.0, 0.5]], np.float32))
    with pytest.raises(DataError, match="fractions"):
        read_mask_values(path)
    tifffile.imwrite(path, np.array([[-1, 70000]], np.int32))
    with pytest.raises(DataError, match=r"0\.\.65535"):
        read_mask_values(path)


@pytest.mark.parametrize("channels", [2, 5, 12])
def test_channels_that_are_no_colours(tmp_path, channels):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.zeros((6, 8, channels), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    assert read_image(path).shape == (6, 8, 3 if channels == 2 else channels)
    assert channels == 2 or read_header(path).channels == channels


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".gif", ".bmp", ".webp"])
@pytest.mark.parametrize("read", [read_image, read_mask_values])
def test_truncated_files_are_named(write, picture, suffix, read):
    path = write(f"cut{suffix}", picture(0, 200, 200))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"cut{suffix}") as caught:
        read(path)
    assert caught.value.hint


def test_empty_missing_and_foreign_files(tmp_path):
    empty, text, folder = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    empty.touch()
    text.write_text("no image")
    folder.mkdir()
    for path, match in [
        (empty, "0 bytes"),
        (text, "no image"),
        (tmp_path / "d.png", "No such"),
        (folder, "c.png"),
    ]:
        for read in (read_image, read_mask_values, image_size):
            with pytest.raises(DataError, match=match):
                read(path)


def _huge_png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_by_its_header_and_pillow_is_left_as_it_was(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(_huge_png(40_000))
    assert MAX_PIXELS < 40_000**2
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (read_image, read_mask_values, image_size):
            with pytest.raises(DataError, match="40000 x 40000"):
                read(path)
    after = Image.MAX_IMAGE_PIXELS
    assert after == before


def test_a_header_above_pillows_own_limit_is_no_warning(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(_huge_png(12_000))
    assert image_size(path) == (12_000, 12_000)


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may read everything")
def test_unreadable_by_rights(write, picture):
    path = write("a.png", picture())
    path.chmod(0)
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(path)
