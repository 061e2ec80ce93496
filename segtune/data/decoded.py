"""Decoded images and masks on disk, mapped into memory while training reads them again and again.

Each image and each class map is one .npy file, named after its origin (path, size and time of change of the
files, and how they are read), written under another name and renamed: an entry is whole or not there,
whatever is interrupted and whoever else writes. Samples are read in random order, so that once the folder
is full nothing of this run is thrown out for something else of it: the rest is decoded as ever. Only what
no process has used since this run began makes room.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtune.data.base import Image, Mask, Origin, Reader, Sample, origin_of
from segtune.data.settings import DataSettings
from segtune.errors import DataError

VERSION = 1
"""Part of every name; a change of how files are read changes it."""
MEASURED_EVERY = 64
"""Entries that a process writes before it looks again how full the folder is; others write there too."""


def default_folder() -> Path:
    """Where decoded arrays are kept unless `data.decoded_cache` says otherwise."""
    return Path.home() / ".cache" / "segtune" / "decoded"


@dataclass(eq=False)
class DecodedFolder:
    """A bounded folder of arrays, shared by any number of processes."""

    path: Path
    limit: float
    """Bytes."""
    start: float = field(default_factory=time.time)
    """Entries that were used since then, by file time, stay."""
    _size: int = 0
    _unmeasured: int = MEASURED_EVERY
    _full: bool = False

    def array(self, key: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of an entry, mapped read-only, or made anew and kept where there is room.

        Raises:
            DataError: the folder cannot be written.
        """
        path = self.path / f"{key}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            self._touch(path)
            return array
        array = np.ascontiguousarray(make())
        try:
            if self._has_room(array.nbytes):
                self._write(path, array)
        except OSError as error:
            raise DataError(
                f"decoded images cannot be kept in {self.path}: {error.strerror or error}",
                hint="free some space, name another folder with data.decoded_cache, or set "
                "data.decoded_cache_gib=0",
            ) from None
        return array

    def _has_room(self, wanted: int) -> bool:
        if self._full:
            return False
        if self._unmeasured >= MEASURED_EVERY or self._size + wanted > self.limit:
            self._size, self._unmeasured = self._make_room(wanted), 0
        self._full = self._size + wanted > self.limit
        return not self._full

    def _make_room(self, wanted: int) -> int:
        """Removes what is older than this run as far as needed; the bytes that are left."""
        self.path.mkdir(parents=True, exist_ok=True)
        found = []
        for path in self.path.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process is making room too
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in found)
        for changed, size, path in sorted(found):
            if total + wanted <= self.limit or changed >= self.start:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total

    def _write(self, path: Path, array: NDArray[Any]) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{path.stem}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, array, allow_pickle=False)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._size += array.nbytes
        self._unmeasured += 1

    def _touch(self, path: Path) -> None:
        # An entry that is removed meanwhile, or belongs to another user, is used all the same.
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < self.start:
                os.utime(path)


@dataclass(frozen=True, kw_only=True)
class DecodedReader:
    """A reader whose arrays are decoded once and mapped from then on."""

    reader: Reader
    folder: DecodedFolder

    def image(self, sample: Sample) -> Image:
        """[H, W, C], as the reader gives it."""
        return self._kept(sample, "image", lambda: self.reader.image(sample))

    def mask(self, sample: Sample) -> Mask:
        """[H, W] class map, as the reader gives it."""
        return self._kept(sample, "mask", lambda: self.reader.mask(sample))

    def instances(self, sample: Sample) -> NDArray[np.int32]:
        """[H, W] numbers of objects, as the reader gives them."""
        return self._kept(sample, "instances", lambda: self.reader.instances(sample))  # type: ignore[attr-defined]

    def _kept(self, sample: Sample, what: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        origin = origin_of(self.reader, sample)
        key = None if origin is None else _key(origin, what)
        return make() if key is None else self.folder.array(key, make)


def decoded_reader(reader: Reader, settings: DataSettings) -> Reader:
    """The reader, or one that keeps decoded arrays where the settings ask for it."""
    if not settings.decoded_cache_gib:
        return reader
    path = default_folder() if settings.decoded_cache is None else Path(settings.decoded_cache).expanduser()
    return DecodedReader(
        reader=reader, folder=DecodedFolder(path=path, limit=settings.decoded_cache_gib * 2**30)
    )


def _key(origin: Origin, what: str) -> str | None:
    """A name for one array of an origin; None where a file is missing, which its reader will say."""
    parts = [str(VERSION), what, origin.rest]
    for path in origin.files:
        try:
            state = path.stat()
        except OSError:
            return None
        parts.append(f"{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}")
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
