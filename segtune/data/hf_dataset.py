"""Hugging Face datasets with a column of images and a column of masks.

    a folder written by save_to_disk, with one split or several
    a folder of Parquet files: train-00000-of-00001.parquet, also in data/
    hf:owner/name, from the hub

Needs the package `datasets`. No code of a data set is ever run, and files outside of its folder are not read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from segtune.data import HUB, is_hub
from segtune.data.assemble import OUTSIDE_CODE, assemble
from segtune.data.base import DataIndex, Finding, Image, Mask, Origin, Sample, Severity
from segtune.data.channels import ChannelRule
from segtune.data.files import PLAIN, MaskFile, decode_image, decode_mask, read_image, read_mask_file
from segtune.data.masks import FileReader, MaskCoding, outside_error
from segtune.data.matching import list_files, path_inside
from segtune.data.settings import DataSettings
from segtune.data.split import SPLIT_WORDS
from segtune.errors import DataError, MissingExtraError
from segtune.settings import Settings

IMAGE_COLUMNS = ("image", "img", "photo", "picture", "pixel_values")
MASK_COLUMNS = (
    "mask",
    "label",
    "labels",
    "annotation",
    "segmentation",
    "segmentation_mask",
    "semantic_segmentation",
    "seg",
    "gt",
    "ground_truth",
)
_ID = re.compile(r"[\w.-]+/[\w.-]+")


class HfDatasetSettings(Settings):
    """Which columns."""

    image: str | None = Field(None, description="column of images; null: by its name")
    mask: str | None = Field(None, description="column of masks; null: by its name")


class HfDataset:
    """The format of Hugging Face datasets."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        if root.is_dir() and (root / "dataset_dict.json").is_file():
            return "dataset_dict.json, as save_to_disk writes it"
        if root.is_dir() and (root / "state.json").is_file() and (root / "dataset_info.json").is_file():
            return "state.json and dataset_info.json, as save_to_disk writes them"
        files = _parquet(root)
        return f"{len(files)} Parquet files, e.g. {files[0].name}" if files else None

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Opens the tables and finds out how the masks are coded.

        Raises:
            MissingExtraError: the package `datasets` is not installed.
            DataError: there is no such data set, or its columns are not clear.
        """
        options = HfDatasetSettings.model_validate(settings.options)
        tables = _open(root)
        first = next(iter(tables.values()))
        image, mask = _columns(root, first, options)
        folder = root if root.is_dir() or is_hub(root) else root.parent
        rows = Rows(
            root=folder,
            tables={name: _undecoded(table, image, mask) for name, table in tables.items()},
            image_column=image,
            mask_column=mask,
        )
        splits = {name: SPLIT_WORDS.get(re.split(r"[^a-z]", name.lower())[0]) for name in tables}
        any_split = any(splits.values())
        unused = [name for name, split in splits.items() if split is None and any_split]
        samples = [
            Sample(name=f"{name}/{row:06d}", image=path, mask=path, split=splits[name])
            for name, table in tables.items()
            if name not in unused
            for row in range(len(table))
            for path in [folder / name / f"{row:06d}"]
        ]
        if not samples:
            raise DataError(f"{root}: the data set has no rows", hint="is it complete?")
        findings = []
        if unused:
            findings.append(
                Finding(
                    severity=Severity.WARNING,
                    code="sample-without-split",
                    message=f"tables that are no split are left out: {', '.join(unused)}",
                    hint="name them train, validation or test",
                )
            )
        counts = ", ".join(f"{name} {len(table)}" for name, table in tables.items())
        index = assemble(
            folder,
            format="hf_dataset",
            samples=samples,
            settings=settings,
            evidence=[f"rows: {counts}; images from the column {image!r}, masks from {mask!r}"],
            findings=findings,
            read=rows.stored_mask,
        )
        assert isinstance(index.reader, FileReader)
        reader = RowReader(rows=rows, coding=index.reader.coding, tolerant=OUTSIDE_CODE in settings.allow)
        return replace(index, reader=reader)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Images and masks by the row that a path stands for: root / table / number."""

    root: Path
    tables: Mapping[str, Any]
    image_column: str
    mask_column: str

    def image(self, path: Path, rule: ChannelRule) -> Image:
        """The image of a row, [H, W, C]."""
        content = self.content(path, self.image_column)
        if isinstance(content, Path):
            return read_image(content, rule)
        return decode_image(content, path, rule)

    def stored_mask(self, path: Path) -> MaskFile:
        """What the mask of a row stores."""
        content = self.content(path, self.mask_column)
        return read_mask_file(content) if isinstance(content, Path) else decode_mask(content, path)

    def content(self, path: Path, column: str) -> bytes | Path:
        """Bytes of an image file, or where it lies.

        Raises:
            DataError: the cell is empty, or names a file outside of the folder.
        """
        cell = self.tables[path.parent.name][int(path.name)][column]
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            return cell
        if not isinstance(cell, str):
            raise DataError(f"{path}: the column {column!r} is empty", hint="remove the row")
        inside = None if is_hub(self.root) else path_inside(self.root, cell)
        if inside is None:
            raise DataError(
                f"{path}: the column {column!r} names the file {cell}, outside of the data set",
                hint="write the data set with the images in it, e.g. as Parquet (to_parquet)",
            )
        return inside


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """Reads the samples of a table."""

    rows: Rows
    coding: MaskCoding
    tolerant: bool = False
    """Whether mask values that mean no class are ignored instead of refused."""
    channels: ChannelRule = PLAIN

    def origin(self, sample: Sample) -> Origin | None:
        """The content of the row's two cells, or the files that they name."""
        cells = [self.rows.content(sample.image, c) for c in (self.rows.image_column, self.rows.mask_column)]
        held = [
            hashlib.blake2b(cell, digest_size=16).hexdigest() for cell in cells if isinstance(cell, bytes)
        ]
        files = tuple(cell for cell in cells if isinstance(cell, Path))
        return Origin(files, f"row {held} {self.channels} {self.coding} {self.tolerant}")

    def image(self, sample: Sample) -> Image:
        """[H, W, C]."""
        return self.rows.image(sample.image, self.channels)

    def mask(self, sample: Sample) -> Mask:
        """[H, W] class map.

        Raises:
            DataError: it cannot be read, or holds values that mean no class.
        """
        assert sample.mask is not None, f"{sample.name} has no mask"
        mask, outside = self.coding.decode(self.rows.stored_mask(sample.mask))
        if outside and not self.tolerant:
            raise outside_error(sample.mask, outside)
        return mask


def _parquet(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() == ".parquet" else []
    return list_files(root, {".parquet"}) or list_files(root / "data", {".parquet"})


def _open(root: Path) -> dict[str, Any]:
    """Tables by name.

    Raises:
        MissingExtraError: the package `datasets` is not installed.
        DataError: there is none, or it is damaged.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError(
            "datasets", extra="datasets", purpose="reading Hugging Face datasets"
        ) from None
    if is_hub(root) and not _ID.fullmatch(root.as_posix().removeprefix(HUB)):
        raise DataError(f"{root} is no data set of the hub", hint="write hf:owner/name")
    try:
        if is_hub(root):
            found = datasets.load_dataset(root.as_posix().removeprefix(HUB))
        elif files := _parquet(root):
            found = datasets.load_dataset("parquet", data_files=_by_split(files))
        else:
            found = datasets.load_from_disk(str(root))
    except Exception as error:  # the package raises anything on foreign files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        hint = "copy it again"
        if is_hub(root):
            hint = (
                "check the name and the connection; or fetch it elsewhere (hf download --repo-type dataset), "
                "copy it here and name the folder"
            )
        raise DataError(f"{root}: the data set cannot be opened: {reason}", hint=hint) from None
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"rows": found}


def _by_split(files: Sequence[Path]) -> dict[str, list[str]]:
    """Files by the word that their name starts with, where that is a split."""
    found: dict[str, list[str]] = {}
    for path in files:
        word = re.split(r"[^a-z]", path.stem.lower())[0]
        found.setdefault(word if word in SPLIT_WORDS else "rows", []).append(str(path))
    return found


def _columns(root: Path, table: Any, options: HfDatasetSettings) -> tuple[str, str]:
    """The columns of images and of masks.

    Raises:
        DataError: they are not clear.
    """
    there = [name for name, feature in table.features.items() if _holds_images(feature)]
    listed = ", ".join(f"{name} ({_kind(feature)})" for name, feature in table.features.items())
    hint = f"data.options.image and data.options.mask name columns of: {listed}"
    stated = (("image", options.image), ("mask", options.mask))
    for what, name in stated:
        if name is not None and name not in there:
            raise DataError(f"{root}: data.options.{what}={name!r} is no column of images", hint=hint)
    image = options.image or next((n for n in IMAGE_COLUMNS if n in there and n != options.mask), None)
    mask = options.mask or next((n for n in MASK_COLUMNS if n in there and n != image), None)
    if len(there) == 2 and (image is None) != (mask is None):
        other = next(name for name in there if name != (image or mask))
        image, mask = image or other, mask or other
    if image is None or mask is None or image == mask:
        raise DataError(f"{root}: it is not clear which columns are images and masks", hint=hint)
    return image, mask


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", "") or type(feature).__name__)


def _holds_images(feature: Any) -> bool:
    """Whether a column holds image files: as the package marks them, or as bytes."""
    is_struct = isinstance(feature, Mapping) and "bytes" in feature
    return is_struct or type(feature).__name__ == "Image" or _kind(feature) in ("binary", "large_binary")


def _undecoded(table: Any, *columns: str) -> Any:
    """The two columns with image files as bytes."""
    import datasets

    table = table.select_columns(list(columns))
    for column in columns:
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table
