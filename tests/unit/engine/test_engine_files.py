"""Files are whole or not there; JSON has no words that JSON does not know."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from segtune.engine import files
from segtune.engine.files import plain, to_json, write_bytes, write_json, write_text, write_with


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_in_the_middle_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_librarys_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.png"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        assert temporary.suffix == ".png"
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_with(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_reaches_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: (calls.append("sync"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    write_text(tmp_path / "a", "text")
    assert calls == ["sync", "replace", "sync"]  # the last one is the folder's


def test_json(tmp_path: Path) -> None:
    value = {"a": float("nan"), 1: [float("inf"), (2.5, Path("x"))], "t": True, "ü": None}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "a": None,
        "1": [None, [2.5, "x"]],
        "t": True,
        "ü": None,
    }
    assert "ü" in to_json(value)
    assert plain(3) == 3
