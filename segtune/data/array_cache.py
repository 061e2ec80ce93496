"""A bounded folder of unpacked arrays, each with facts about it, shared by any number of processes.

An entry is KEY.npy, which is mapped into memory so that a slice costs one small read, and KEY.json. Both are
written under a temporary name and renamed, the array first: who finds the facts finds the array. Two
processes that make the same entry write the same bytes. When the folder grows too large, the entries that
were not used for longest go; a process that has one mapped keeps its pages.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtune.errors import DataError

VERSION = 1
"""Part of every key; a change of what entries hold changes it."""
TOUCH_AFTER = 60.0
"""Seconds after which a use is noted anew."""

Facts = dict[str, Any]
Make = Callable[[], tuple[NDArray[Any], Facts]]


def identity(path: Path) -> list[Any]:
    """What tells a file's content apart without reading it: place, size and time of change.

    Raises:
        DataError: there is no such file.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", hint="check the path and its rights") from None
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]


def make_key(*parts: Any) -> str:
    """A name that differs wherever any of the parts differs.

    Args:
        parts: plain JSON values.
    """
    return hashlib.sha256(json.dumps([VERSION, *parts]).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class ArrayCache:
    """Arrays on disk by key."""

    folder: Path
    limit: float
    """Bytes that the folder may hold; the entry that was just made stays in any case."""

    def facts(self, key: str, make: Make) -> Facts:
        """The facts of an entry, made where it is not there.

        Raises:
            DataError: the folder cannot be written.
        """
        return self._facts(key) or self._make(key, make)[1]

    def array(self, key: str, make: Make) -> NDArray[Any]:
        """The array of an entry, mapped into memory read-only, made where it is not there.

        Raises:
            DataError: the folder cannot be written.
        """
        path = self.folder / f"{key}.npy"
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or removed by another process, or damaged
            return self._make(key, make)[0]
        self._touch(path)
        return array

    def _facts(self, key: str) -> Facts | None:
        try:
            facts: Facts = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return facts

    def _make(self, key: str, make: Make) -> tuple[NDArray[Any], Facts]:
        array, facts = make()
        array = np.ascontiguousarray(array)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(f"{key}.npy", lambda file: np.save(file, array, allow_pickle=False))
            self._write(f"{key}.json", lambda file: file.write(json.dumps(facts).encode()))
            self._shrink(key)
        except OSError as error:
            raise DataError(
                f"the cache {self.folder} cannot be written: {error.strerror or error}",
                hint="free some space, or name another folder with data.volume.cache",
            ) from None
        return array, facts

    def _write(self, name: str, write: Callable[[Any], Any]) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
            Path(temporary).replace(self.folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _touch(self, path: Path) -> None:
        # An entry that is removed meanwhile, or belongs to another user, is used all the same.
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > TOUCH_AFTER:
                os.utime(path)

    def _shrink(self, kept: str) -> None:
        entries = []
        for path in self.folder.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):  # another process is shrinking too
                state = path.stat()
                entries.append((state.st_mtime, state.st_size, path))
        excess = sum(size for _, size, _ in entries) - self.limit
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            if path.stem != kept:
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                excess -= size
