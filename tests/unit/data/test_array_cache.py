"""The folder of unpacked volumes: bounded, shared, and never half-written."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from segtune.data.array_cache import ArrayCache, identity, make_key
from segtune.errors import DataError


def entry(number: int, size: int = 1000):
    return np.full(size, number, np.uint8), {"number": number}


def test_an_entry_is_made_once(tmp_path):
    cache = ArrayCache(folder=tmp_path, limit=1e9)
    calls = []

    def make():
        calls.append(1)
        return entry(7)

    assert cache.facts("a", make) == {"number": 7}
    assert cache.array("a", make)[3] == 7
    assert isinstance(cache.array("a", make), np.memmap)
    assert len(calls) == 1


def test_the_oldest_entries_go_first(tmp_path):
    cache = ArrayCache(folder=tmp_path, limit=3500)
    for number, name in enumerate("abc"):
        cache.array(name, lambda number=number: entry(number))
        os.utime(tmp_path / f"{name}.npy", (number, number))
    cache.array("a", lambda: entry(0))  # used: now the newest
    cache.array("d", lambda: entry(3))
    assert sorted(path.stem for path in tmp_path.glob("*.npy")) == ["a", "c", "d"]
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["a", "c", "d"]


def test_an_entry_larger_than_the_limit_is_kept(tmp_path):
    cache = ArrayCache(folder=tmp_path, limit=10)
    assert cache.array("a", lambda: entry(1))[0] == 1
    assert [path.name for path in tmp_path.glob("*.npy")] == ["a.npy"]


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY garbage"])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    cache = ArrayCache(folder=tmp_path, limit=1e9)
    cache.array("a", lambda: entry(1))
    (tmp_path / "a.npy").write_bytes(damage)
    (tmp_path / "a.json").write_bytes(damage)
    assert cache.array("a", lambda: entry(2))[0] == 2
    assert cache.facts("a", lambda: entry(2)) == {"number": 2}


def test_nothing_is_left_of_a_failed_write(tmp_path):
    cache = ArrayCache(folder=tmp_path, limit=1e9)
    with pytest.raises(TypeError):
        cache.array("a", lambda: (np.zeros(3), {"no": object()}))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert cache.facts("a", lambda: entry(5)) == {"number": 5}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ArrayCache(folder=tmp_path / "file" / "below", limit=1e9)
    with pytest.raises(DataError, match=r"cannot be written[\s\S]*data\.volume\.cache"):
        cache.array("a", lambda: entry(1))


def _worker(folder: str, seed: int) -> int:
    cache = ArrayCache(folder=Path(folder), limit=5500)
    order = np.random.default_rng(seed).integers(0, 12, 200)
    return sum(int(cache.array(str(n), lambda n=n: entry(int(n)))[0] != n) for n in order)


def test_several_processes_share_a_folder(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.starmap(_worker, [(str(tmp_path), seed) for seed in range(3)]) == [0, 0, 0]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) <= 5500


def test_a_changed_file_has_another_key(tmp_path):
    path = tmp_path / "a"
    path.write_text("1")
    first = make_key(identity(path))
    path.write_text("12")
    assert make_key(identity(path)) != first
