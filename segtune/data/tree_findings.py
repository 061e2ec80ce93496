"""Looks at the folders themselves: links that lead nowhere or in a circle, names that only look different."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath

from segtune.data.base import DataIndex, Finding, Severity
from segtune.data.files import SUFFIXES
from segtune.data.findings import file_finding


def tree_findings(index: DataIndex) -> list[Finding]:
    """Findings about links and names below the root of a data set."""
    if not index.root.is_dir():
        return []
    loops, broken, alike = _walk(index.root)
    return [
        *file_finding(
            Severity.WARNING,
            "link-loop",
            "links lead back to a folder that they lie in, and are not followed",
            index.root,
            loops,
            "remove them",
        ),
        *file_finding(
            Severity.WARNING,
            "broken-link",
            "links to images lead nowhere",
            index.root,
            broken,
            "copy the files that are meant, or remove the links",
        ),
        *file_finding(
            Severity.WARNING,
            "names-alike",
            "names in a folder differ only in capitals or in the Unicode form of a letter; other systems "
            "keep one of them",
            index.root,
            alike,
            "rename or remove one of each",
        ),
        *_unmatched_alike(index),
    ]


def same_name(name: str) -> str:
    """What names have in common that differ only in capitals or in their Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _walk(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    loops, broken, alike = [], [], []
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        real = here.resolve()
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__")))
        for name in list(subfolders):
            path = here / name
            if path.is_symlink() and real.is_relative_to(path.resolve()):
                loops.append(path)
                subfolders.remove(name)
        images = [name for name in sorted(names) if PurePosixPath(name).suffix.lower() in SUFFIXES]
        broken += [
            here / name for name in images if (here / name).is_symlink() and not _leads_to_file(here / name)
        ]
        by_name = defaultdict(list)
        for name in images:
            by_name[same_name(name)].append(here / name)
        alike += [path for paths in by_name.values() if len(paths) > 1 for path in paths]
    return loops, broken, alike


def _leads_to_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a link to itself
        return False


def _unmatched_alike(index: DataIndex) -> list[Finding]:
    """Images and masks without a partner whose names would match but for capitals or Unicode form."""
    by_name = defaultdict(list)
    for finding in index.findings:
        if finding.code == "unmatched-file":
            for file in finding.files:
                by_name[same_name(PurePosixPath(file).stem)].append(index.root / file)
    return file_finding(
        Severity.WARNING,
        "names-in-two-forms",
        "images and masks do not match, since their names differ in capitals or in a letter's Unicode form",
        index.root,
        [path for paths in by_name.values() if len(paths) > 1 for path in paths],
        "give image and mask the very same name",
    )
