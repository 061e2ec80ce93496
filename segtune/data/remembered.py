"""Remembers what files were found to hold, so that unchanged files are not opened again.

One compressed JSON file for each data set and way of reading it, in the user's cache folder. An entry counts
as long as path, size and time of change of its files are the same. Whatever is damaged or cannot be
written is done without: the files are read then.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from segtune.data.files import Progress, map_threads

VERSION = 1
"""A change of what is noted, or of how files are read, changes it."""
MAX_BYTES = 256_000_000
"""Size of the whole folder above which the files that were not used for longest go."""
SETTLED = 2.0
"""Seconds after its last change from which a file is remembered: coarse clocks see no second change."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def cache_folder() -> Path:
    """Where facts about files are kept: $SEGTUNE_DATA_CACHE, else ~/.cache/segtune/check."""
    chosen = os.environ.get("SEGTUNE_DATA_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "segtune" / "check"


def identity(paths: Sequence[Path]) -> str | None:
    """What tells files apart without opening them, or None where one is missing or was just changed."""
    parts = []
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            return None
        if time.time() - state.st_mtime < SETTLED:
            return None
        parts.append(f"{path}\0{state.st_size}\0{state.st_mtime_ns}")
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def remember(
    root: Path,
    recipe: str | None,
    items: Sequence[Item],
    *,
    files: Callable[[Item], Sequence[Path]],
    make: Callable[[Item], Result],
    dump: Callable[[Result], Any],
    load: Callable[[Item, Any], Result],
    progress: Progress | None = None,
) -> list[Result]:
    """Makes a result for each item in threads, or takes the one that was made of the same files before.

    Args:
        root: of the data set.
        recipe: everything else that results depend on, as text; None: nothing is remembered.
        items: what to make results of.
        files: the files that an item's result depends on.
        make: makes a result.
        dump: the result as plain JSON values; None where it is not to be remembered.
        load: the opposite; ValueError, KeyError and TypeError mean that the values are damaged.
        progress: called with the number of finished items and their total.

    Returns:
        The results in the order of the items.
    """
    if recipe is None:
        return map_threads(make, items, progress)
    name = hashlib.sha256(f"{root.resolve()}\0{recipe}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    path = cache_folder() / f"{name}.json.gz"
    known = _read(path)
    kept: dict[str, Any] = {}

    def one(item: Item) -> Result:
        key = identity(files(item))
        if key is not None and key in known:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                result = load(item, known[key])
                kept[key] = known[key]
                return result
        result = make(item)
        if key is not None and key == identity(files(item)):
            values = dump(result)
            if values is not None:
                kept[key] = values
        return result

    results = map_threads(one, items, progress)
    if kept.keys() != known.keys():
        with contextlib.suppress(OSError):
            _write(path, kept)
    return results


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(gzip.decompress(path.read_bytes()))
        os.utime(path)
    except Exception:  # decompression raises more than its own errors on foreign bytes
        return {}
    entries = values.get("entries") if isinstance(values, dict) and values.get("version") == VERSION else None
    return entries if isinstance(entries, dict) else {}


def _write(path: Path, entries: dict[str, Any]) -> None:
    content = gzip.compress(json.dumps({"version": VERSION, "entries": entries}).encode(), compresslevel=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _shrink(path)


def _shrink(newest: Path) -> None:
    found = []
    for path in newest.parent.glob("*.json.gz"):
        with contextlib.suppress(OSError):  # another process is shrinking too
            state = path.stat()
            found.append((state.st_mtime, state.st_size, path))
    excess = sum(size for _, size, _ in found) - MAX_BYTES
    for _, size, path in sorted(found):
        if excess <= 0:
            break
        if path != newest:
            path.unlink(missing_ok=True)
            excess -= size
