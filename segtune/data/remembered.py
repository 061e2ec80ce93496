"""Remembers what files were found to hold, so that unchanged files are not opened again.

One compressed JSON file for each data set, in the user's cache folder. An entry counts as long as the
origin of its item is the same: path below the root, size and time of change of its files, and the way of
reading them. Entries that were not asked for are kept up to a limit, so that looks at parts of a data
set, or in two ways, do not push each other out. Whatever is damaged or cannot be written is done without: the
files are read then.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from segtune.data.base import Origin
from segtune.data.files import Progress, map_threads

VERSION = 2
"""A change of what is noted, or of how files are read, changes it."""
MAX_BYTES = 256_000_000
"""Size of the whole folder above which the files that were not used for longest go."""
SPARE = 10_000
"""Entries that are kept for each data set although they were not asked for."""
SETTLED = 2.0
"""Seconds after its last change from which a file is remembered: coarse clocks see no second change."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def cache_folder() -> Path:
    """Where facts about files are kept: $SEGTUNE_DATA_CACHE, else ~/.cache/segtune/check."""
    chosen = os.environ.get("SEGTUNE_DATA_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "segtune" / "check"


def identity(origin: Origin, root: Path) -> str | None:
    """What tells origins apart without opening files, or None where a file is missing or was just changed.

    Args:
        origin: files and the way of reading them.
        root: where the files' names count from, so that it may be spelt in several ways.
    """
    parts = [origin.rest]
    for path in origin.files:
        try:
            state = path.stat()
        except OSError:
            return None
        if time.time() - state.st_mtime < SETTLED:
            return None
        name = path.relative_to(root) if path.is_relative_to(root) else path
        parts.append(f"{name}\0{state.st_size}\0{state.st_mtime_ns}")
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def remember(
    root: Path,
    recipe: str | None,
    items: Sequence[Item],
    *,
    origin: Callable[[Item], Origin | None],
    make: Callable[[Item], Result],
    dump: Callable[[Result], Any],
    load: Callable[[Item, Any], Result],
    progress: Progress | None = None,
) -> list[Result]:
    """Makes a result for each item in threads, or takes the one that was made of the same files before.

    Args:
        root: of the data set.
        recipe: what the results are; None: nothing is remembered.
        items: what to make results of.
        origin: what an item's result depends on; None: this one is not remembered.
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
        made_of = origin(item)
        key = None if made_of is None else identity(made_of, root)
        if key is not None and key in known:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                result = load(item, known[key])
                kept[key] = known[key]
                return result
        result = make(item)
        if key is not None and made_of is not None and key == identity(made_of, root):
            values = dump(result)
            if values is not None:
                kept[key] = values
        return result

    results = map_threads(one, items, progress)
    if kept.keys() - known.keys():
        spare = itertools.islice((key for key in known if key not in kept), SPARE)
        kept |= {key: known[key] for key in spare}
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
