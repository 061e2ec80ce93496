"""Pairs of images and masks by a key that a format finds in their names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from segtune.data.base import Finding, Severity
from segtune.data.files import SUFFIXES
from segtune.data.findings import file_finding


def list_names(folder: Path, suffixes: Iterable[str] = SUFFIXES) -> list[str]:
    """Names of the files of a folder with one of these endings, in a fixed order; none without a folder."""
    wanted = frozenset(suffixes)
    try:
        names = os.listdir(folder)  # noqa: PTH208  (ten times as fast, on folders of many thousands)
    except OSError:
        return []
    endings = (name for name in names if not name.startswith("."))
    return sorted(name for name in endings if os.path.splitext(name)[1].lower() in wanted)  # noqa: PTH122


def list_files(folder: Path, suffixes: Iterable[str] = SUFFIXES) -> list[Path]:
    """The files of a folder with one of these endings, as `list_names`."""
    return [folder / name for name in list_names(folder, suffixes)]


def subfolders(folder: Path) -> Iterator[Path]:
    """The folders in a folder, in a fixed order; none where there is no folder."""
    if folder.is_dir():
        yield from sorted(
            path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )


def path_inside(folder: Path, text: str, start: Path | None = None) -> Path | None:
    """The file that a text names, or None where it leads out of a folder.

    Args:
        folder: that the file must lie in.
        text: a relative path as some file states it, with slashes of either kind.
        start: what it is relative to, if not the folder.
    """
    if "\0" in text:
        return None
    base = Path(os.path.normpath(folder.absolute()))
    # Dots are resolved without following links, which are the owner's own doing.
    path = Path(os.path.normpath((start or folder).absolute() / text.replace("\\", "/")))
    return folder / path.relative_to(base) if path.is_relative_to(base) else None


def files_by_place(folder: Path) -> dict[str, Path]:
    """The images of a folder and of the folders in it, by their path without the ending."""
    found = [path for place in (folder, *subfolders(folder)) for path in list_files(place)]
    return by_key((path.relative_to(folder).with_suffix("").as_posix(), path) for path in found)


def by_key(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Files by their key; of several with one key the first."""
    found: dict[str, Path] = {}
    for key, path in files:
        found.setdefault(key, path)
    return found


def match(
    root: Path, images: Mapping[str, Path], masks: Mapping[str, Path], hint: str = ""
) -> tuple[list[str], list[Finding]]:
    """The keys that have an image and a mask, and findings about the others.

    Args:
        root: folder that all files lie in.
        images: key -> image.
        masks: key -> mask.
        hint: what may be wrong where many do not match.
    """
    keys = [key for key in images if key in masks]
    lone_images = [path for key, path in images.items() if key not in masks]
    lone_masks = [path for key, path in masks.items() if key not in images]
    findings = file_finding(
        Severity.ERROR if len(lone_images) > len(keys) else Severity.WARNING,
        "unmatched-file",
        "images without a mask are left out",
        root,
        lone_images,
        hint or "add the masks, or remove the images",
    )
    findings += file_finding(
        Severity.WARNING,
        "unmatched-file",
        "masks without an image are left out",
        root,
        lone_masks,
        "add the images, or remove the masks",
    )
    return keys, findings
