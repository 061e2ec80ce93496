"""The contact sheet: written whole, with colours where the classes are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segtune.data.base import Classes
from segtune.data.open import open_data
from segtune.data.preview import colour_mask, overlay, write_preview

CLASSES = Classes(names=("a", "b"), palette=((0, 0, 0), (200, 100, 0)))


def test_sheet(make_folder, tmp_path, write):
    masks = [np.kron(np.array([[0, 1]], np.uint8), np.ones((24, 16), np.uint8))] * 14
    masks[3] = np.ones((200, 10), np.uint8)
    root = make_folder(masks)
    path = write_preview(open_data(root), tmp_path / "out" / "sheet.png")
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000 and sheet.height > 500
        assert len(sheet.convert("RGB").getcolors(1 << 24) or []) > 50
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("num", [1, 2, 40])
def test_number_of_samples(make_folder, tmp_path, num):
    root = make_folder([np.eye(24, 32, dtype=np.uint8)] * 5)
    assert write_preview(open_data(root), tmp_path / "sheet.png", num=num).exists()


def test_damaged_files_are_shown_as_such(make_folder, tmp_path):
    root = make_folder([np.eye(24, 32, dtype=np.uint8)] * 5)
    index = open_data(root)
    (root / "images/1.png").write_bytes(b"x")
    assert write_preview(index, tmp_path / "sheet.png").exists()


def test_sixteen_bit_images(write, tmp_path):
    write("images/a.png", (np.arange(24 * 32, dtype=np.uint16) * 7).reshape(24, 32))
    write("masks/a.png", np.eye(24, 32, dtype=np.uint8))
    assert write_preview(open_data(tmp_path), tmp_path / "sheet.png").exists()


def test_colours():
    mask = np.array([[0, 1, 255]], np.uint8)
    colours = colour_mask(mask, CLASSES)
    assert colours[0, :2].tolist() == [[0, 0, 0], [200, 100, 0]]
    assert len(set(colours[0, 2].tolist())) == 1 and colours[0, 2, 0] > 180


def test_overlay_tints_classes_and_leaves_the_background():
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 1
    image = np.full((8, 8, 3), 100, np.uint8)
    result = overlay(image, mask, CLASSES)
    assert (result[:, :4] == 100).all() and (result[:, 4] == 255).all()
    assert (result[:, 5:] == (150, 100, 50)).all()


def test_overlay_marks_the_borders() -> None:
    classes = np.zeros((4, 6), np.uint8)
    classes[:, 3:] = 1
    got = overlay(
        np.full((4, 6, 3), 100, np.uint8),
        classes,
        Classes(names=("a", "b"), palette=((0, 0, 0), (200, 0, 0))),
    )
    assert got.shape == (4, 6, 3)
    assert (got[:, 3] == 255).all()
    assert (got[:, 0] == 100).all()
    assert (got[:, 5] == [150, 50, 50]).all()
