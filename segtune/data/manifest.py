"""A CSV file that lists images and masks: columns image, mask and, where wanted, split and group.

    image,mask,split,group
    images/001.jpg,masks/001.png,train,patient_7

The columns sequence and patient mean the same as group. Paths are relative to the file and stay
within its folder. The data's root is the file, or a folder that holds exactly one such file.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segtune.data.assemble import assemble
from segtune.data.base import SPLITS, DataIndex, Finding, Sample, Severity
from segtune.data.findings import file_finding
from segtune.data.matching import path_inside
from segtune.data.settings import DataSettings
from segtune.data.split import SPLIT_WORDS
from segtune.errors import DataError
from segtune.registry import nearest

GROUP_COLUMNS = ("group", "sequence", "patient")
DELIMITERS = (",", ";", "\t")
MAX_BYTES = 500_000_000


@dataclass(frozen=True)
class _Table:
    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, Mapping[str, str]], ...]
    """Line number and cells by column."""


class Manifest:
    """The format of CSV files that list images and masks."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None.

        Raises:
            DataError: the folder holds several such files.
        """
        path = _find(root)
        return None if path is None else f"{path.name} has the columns image and mask"

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Reads the rows and finds out how the masks are coded.

        Raises:
            DataError: the file is damaged, lists nothing usable, or leads out of its folder.
        """
        path = _find(root)
        if path is None:
            raise DataError(
                f"{root}: no CSV file with the columns image and mask",
                hint="the first line of the file names its columns, e.g. image,mask,split,group",
            )
        table = _read_table(path)
        folder = path.parent
        samples, findings = _samples(table, folder)
        if not samples:
            raise DataError(
                "\n".join(
                    [
                        f"{path}: none of its {len(table.rows)} rows is usable",
                        *(f"  {f.message}" for f in findings),
                    ]
                ),
                hint="each row needs an image and a mask that exist, relative to the CSV file",
            )
        group = next((column for column in GROUP_COLUMNS if column in table.columns), None)
        used = ["image", "mask", *(c for c in ("split", group) if c and c in table.columns)]
        unused = [column for column in table.columns if column and column not in used]
        line = f"manifest: {path.name}, {len(table.rows)} rows, columns {', '.join(used)}"
        if group is not None:
            line += f"; {group} is the group ({len({sample.group for sample in samples})} of them)"
        if unused:
            line += f"; not used: {', '.join(unused)}"
        return assemble(
            folder,
            format="manifest",
            samples=samples,
            settings=settings,
            evidence=[line],
            findings=findings,
        )


def _find(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix.lower() in (".csv", ".tsv") and _delimiter(root) else None
    if not root.is_dir():
        return None
    candidates = [
        path
        for path in sorted(root.iterdir())
        if path.suffix.lower() in (".csv", ".tsv") and path.is_file() and _delimiter(path)
    ]
    if len(candidates) > 1:
        raise DataError(
            f"{root}: several CSV files list images and masks: {', '.join(p.name for p in candidates)}",
            hint=f"name the one to use, e.g. {candidates[0]}",
        )
    return candidates[0] if candidates else None


def _delimiter(path: Path) -> str | None:
    """The character that divides the columns, or None where image and mask are not among them."""
    try:
        with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
            line = file.readline(100_000)
    except OSError:
        return None
    for delimiter in DELIMITERS:
        columns = _columns(line.strip().split(delimiter))
        if "image" in columns and "mask" in columns:
            return delimiter
    return None


def _columns(cells: list[str]) -> tuple[str, ...]:
    return tuple(cell.strip().strip('"').strip().lower() for cell in cells)


def _read_table(path: Path) -> _Table:
    if path.stat().st_size > MAX_BYTES:
        raise DataError(
            f"{path}: larger than {MAX_BYTES:,} bytes", hint="is this a list of images and masks?"
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_delimiter(path) or ",", strict=True)
            columns = _columns(next(reader))
            rows = []
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    stripped = (cell.strip() for cell in cells)
                    rows.append((reader.line_num, dict(zip(columns, stripped, strict=False))))
    except (OSError, UnicodeDecodeError, csv.Error, StopIteration) as error:
        raise DataError(
            f"{path}: not readable as CSV: {error}", hint="save it as UTF-8 text with commas"
        ) from None
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} stands twice", hint="keep one of them")
    return _Table(path=path, columns=columns, rows=tuple(rows))


def _samples(table: _Table, folder: Path) -> tuple[list[Sample], list[Finding]]:
    samples: list[Sample] = []
    missing: list[Path] = []
    unlabelled: list[Path] = []
    unsplit: list[Path] = []
    repeated: list[Path] = []
    wrong_splits: dict[str, list[int]] = {}
    seen: set[Path] = set()
    group_column = next((column for column in GROUP_COLUMNS if column in table.columns), None)
    any_split = any(row.get("split") for _, row in table.rows)
    for line, row in table.rows:
        image = _inside(table.path, folder, row.get("image", ""), line, "image")
        mask = _inside(table.path, folder, row.get("mask", ""), line, "mask")
        if image is None:
            raise DataError(
                f"{table.path}, line {line}: no image", hint="fill in the path, or remove the line"
            )
        if mask is None:
            unlabelled.append(image)
            continue
        absent = [path for path in (image, mask) if not _exists(path)]
        if absent:
            missing += absent
            continue
        if image in seen:
            repeated.append(image)
            continue
        seen.add(image)
        word = row.get("split", "")
        split = SPLIT_WORDS.get(word.lower())
        if word and split is None:
            wrong_splits.setdefault(word, []).append(line)
            continue
        if any_split and not word:
            unsplit.append(image)
            continue
        group = row.get(group_column) or None if group_column else None
        name = image.relative_to(folder).with_suffix("").as_posix()
        samples.append(Sample(name=name, image=image, mask=mask, split=split, group=group))
    findings = [_wrong_split(table.path, word, lines) for word, lines in wrong_splits.items()]
    findings += file_finding(
        Severity.ERROR,
        "missing-file",
        f"files listed in {table.path.name} do not exist",
        folder,
        missing,
        "correct the paths (relative to the CSV file), or remove the lines",
    )
    findings += file_finding(
        Severity.ERROR,
        "duplicate-name",
        f"images are listed twice in {table.path.name}; the first line counts",
        folder,
        repeated,
        "keep one line for each image",
    )
    findings += file_finding(
        Severity.WARNING,
        "unmatched-file",
        "images have no mask and are left out",
        folder,
        unlabelled,
        "fill in the column mask, or remove the lines",
    )
    findings += file_finding(
        Severity.WARNING,
        "sample-without-split",
        "images have no split while others do, and are left out",
        folder,
        unsplit,
        "fill in the column split",
    )
    return _unique(samples), findings


def _unique(samples: list[Sample]) -> list[Sample]:
    """Names without the folders that all share, as long as each stays unique."""
    short = [sample.name.rpartition("/")[2] for sample in samples]
    if len(set(short)) == len(short):
        names = short
    else:
        full = [sample.name for sample in samples]
        unique = len(set(full)) == len(full)
        names = full if unique else [f"{sample.name}{sample.image.suffix}" for sample in samples]
    return [
        Sample(name=name, image=s.image, mask=s.mask, split=s.split, group=s.group)
        for name, s in zip(names, samples, strict=True)
    ]


def _inside(table: Path, folder: Path, cell: str, line: int, column: str) -> Path | None:
    if not cell:
        return None
    if "\0" in cell:
        raise DataError(f"{table}, line {line}: the path in the column {column} holds a zero byte")
    path = path_inside(folder, cell)
    if path is None:
        raise DataError(
            f"{table}, line {line}: {cell} in the column {column} leads out of {folder}",
            hint="paths are relative to the CSV file; put the file above the images and masks",
        )
    return path


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # e.g. a name that is too long
        return False


def _wrong_split(path: Path, word: str, lines: list[int]) -> Finding:
    meant = nearest(word, [*SPLIT_WORDS])
    shown = ", ".join(map(str, lines[:5])) + (" ..." if len(lines) > 5 else "")
    return Finding(
        severity=Severity.ERROR,
        code="unknown-split",
        message=f"{path.name} has the split {word!r} in {len(lines)} rows (lines {shown}), left out",
        files=(path.name,),
        hint=f"did you mean {meant!r}?" if meant else f"splits are {', '.join(SPLITS)}",
    )
