"""Decoded images on disk: the same batches, whole entries, a bounded folder."""

from __future__ import annotations

import os
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from segtune.data.decoded import DecodedFolder
from segtune.data.loading import eval_loader, train_loader
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError
from tests.unit.data.test_data_doctor import blobs


def batches(index, settings, **given):
    loader = train_loader(
        index,
        settings,
        **{"batch_size": 3, "seed": 1, "start_step": 0, "num_steps": 6, "crop": (32, 40), **given},
    )
    return [(batch.images, batch.masks, batch.names) for batch in loader]


def equal(first, second) -> bool:
    return all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(first, second, strict=True)
    )


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture
def kept(folder):
    return DataSettings(decoded_cache=str(folder), decoded_cache_gib=0.1, colour=0.3, scale=(0.7, 1.4))


PLAIN = DataSettings(colour=0.3, scale=(0.7, 1.4))


def test_batches_are_the_same_bit_for_bit(make_folder, folder, kept):
    index = open_data(make_folder(blobs(10)))
    expected = batches(index, PLAIN)
    assert equal(expected, batches(index, kept))  # written
    written = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert len(written) == 2 * len(index.training)
    assert equal(expected, batches(index, kept))  # mapped
    assert equal(expected, batches(index, kept.model_copy(update={"workers": 2})))
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == written
    plain, mapped = (list(eval_loader(index, index.split("val"), s)) for s in (PLAIN, kept))
    assert all(
        torch.equal(a.image, b.image) and torch.equal(a.mask, b.mask)
        for a, b in zip(plain, mapped, strict=True)
    )


def test_images_are_not_opened_again_until_they_change(
    make_folder, write, picture, folder, kept, monkeypatch
):
    from segtune.data import files

    opened = []
    real = files._open
    monkeypatch.setattr(files, "_open", lambda path, *rest: (opened.append(path.name), real(path, *rest))[1])
    index = open_data(make_folder(blobs(10)))
    samples = index.training
    batches(index, kept)
    opened.clear()
    batches(index, kept)
    assert opened == []
    write(samples[0].image.relative_to(index.root).as_posix(), picture(77, 48, 64))
    assert equal(batches(index, kept), batches(index, PLAIN))
    inverted = open_data(index.root, DataSettings(values={0: 1, 1: 0}))
    assert equal(batches(inverted, kept), batches(inverted, PLAIN))


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", "cut"])
def test_a_damaged_entry_is_written_again(make_folder, folder, kept, damage):
    index = open_data(make_folder(blobs(10)))
    expected = batches(index, kept)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-5] if damage == "cut" else damage)
    assert equal(expected, batches(index, kept))
    assert all(np.load(path).size for path in folder.iterdir())


def test_a_write_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    cache = DecodedFolder(path=tmp_path, limit=1e6)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        cache.array("a", lambda: np.zeros(10))
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_bounded_and_keeps_what_is_in_use(tmp_path):
    size = 1128  # with the header of the file
    for number in range(3):
        DecodedFolder(path=tmp_path, limit=1e6).array(f"old{number}", lambda: np.zeros(1000, np.uint8))
        os.utime(tmp_path / f"old{number}.npy", (number + 1, number + 1))
    cache = DecodedFolder(path=tmp_path, limit=3.5 * size, start=time.time() - 10)
    cache.array("old0", lambda: pytest.fail("it is there"))  # used: as new as the run
    for number in range(4):
        made = cache.array(f"new{number}", lambda number=number: np.full(1000, number, np.uint8))
        assert (made == number).all()
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["new0", "new1", "old0"]
    assert (cache.array("new3", lambda: np.full(3, 9)) == 9).all()  # no room: made each time


def test_a_folder_that_cannot_be_written(tmp_path, make_folder):
    index = open_data(make_folder(blobs(10)))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be kept") as caught:
        batches(index, DataSettings(decoded_cache=str(tmp_path / "file" / "x"), decoded_cache_gib=1))
    assert "data.decoded_cache" in str(caught.value.hint)


def test_readers_without_an_origin_are_read_as_ever(folder, kept):
    from tests.support import memory_index

    random = np.random.default_rng(0)
    pairs = {
        str(i): (random.integers(0, 255, (40, 44, 3), dtype=np.uint8), np.full((40, 44), i % 3, np.uint8))
        for i in range(6)
    }
    index = memory_index(pairs, "train")
    assert equal(batches(index, kept), batches(index, PLAIN)) and list(folder.iterdir()) == []
    assert all(a[2] != b[2] for a, b in pairwise(batches(index, kept, num_steps=2)))
