"""Makes a data index of pairs of image and mask files; what every format of such files shares."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from segtune.data.base import DataIndex, Finding, Sample
from segtune.data.coding import understand
from segtune.data.description import description_path, read_description
from segtune.data.files import ReadMask, read_image, read_mask_file
from segtune.data.inspection import CLASS_MAP, PHOTO, focus
from segtune.data.known import KnownCoding, restate
from segtune.data.masks import FileReader
from segtune.data.settings import DataSettings
from segtune.errors import DataError

OUTSIDE_CODE = "value-outside-classes"


def assemble(
    root: Path,
    *,
    format: str,
    samples: Sequence[Sample],
    settings: DataSettings,
    evidence: Sequence[str],
    findings: Sequence[Finding],
    known: KnownCoding | None = None,
    read: ReadMask = read_mask_file,
) -> DataIndex:
    """Finds out how the masks are coded and puts everything together.

    Args:
        root: folder that all files lie in.
        format: name of the format.
        samples: image and mask of each; the split may still be missing.
        settings: with `dataset.yaml` merged in.
        evidence: how the files were found.
        findings: what was noticed on the way.
        known: classes and coding where the format fixes them; then no mask is opened.
        read: takes what is stored out of a mask file.

    Raises:
        DataError: no sample is left, or the masks cannot be understood.
    """
    kept, chosen = choose_samples(root, samples, settings)
    lines = [*evidence, *chosen]
    description = read_description(root)
    path = description_path(root)
    if path is not None:
        said = sorted(description.model_fields_set)
        lines.append(f"{path.name} says: {', '.join(said) or 'nothing'}")
    if known is not None:
        understanding = restate(known, settings, description)
    else:
        masks = [sample.mask for sample in kept if sample.mask is not None]
        try:
            understanding = understand(root, masks, settings, description, read)
        except DataError:
            if not _swapped(kept, read):
                raise
            raise DataError(
                f"{root}: images and masks look swapped: {kept[0].image.name} has few grey levels, its mask "
                "those of a photograph",
                hint="exchange the folders, or the columns of the table",
            ) from None
    coding = understanding.coding
    return DataIndex(
        root=root,
        format=format,
        samples=tuple(kept),
        classes=understanding.classes,
        reader=FileReader(coding=coding, tolerant=OUTSIDE_CODE in settings.allow, read=read),
        evidence=(*lines, *understanding.evidence),
        findings=(*findings, *understanding.findings),
        details={
            "masks": coding.coding,
            "threshold": coding.threshold if coding.coding == "binary" else None,
            "ignored_value_in_files": understanding.ignored_value,
            "values": {str(value): label for value, label in coding.values.items()},
            "colours": {f"#{r:02x}{g:02x}{b:02x}": label for (r, g, b), label in coding.colours.items()},
        },
    )


def choose_samples(
    root: Path, samples: Sequence[Sample], settings: DataSettings
) -> tuple[list[Sample], list[str]]:
    """The samples that `data.include` and `data.exclude` leave, and the evidence.

    Raises:
        DataError: none is left.
    """
    kept = [sample for sample in samples if _wanted(sample.name, settings)]
    if not kept:
        raise DataError(
            f"data.include and data.exclude leave none of {len(samples)} samples of {root}",
            hint=f"they are globs of names such as {samples[0].name!r}",
        )
    if len(kept) == len(samples):
        return kept, []
    return kept, [f"data.include and data.exclude keep {len(kept)} of {len(samples)} samples"]


def _wanted(name: str, settings: DataSettings) -> bool:
    included = not settings.include or any(fnmatch.fnmatchcase(name, glob) for glob in settings.include)
    return included and not any(fnmatch.fnmatchcase(name, glob) for glob in settings.exclude)


def _swapped(samples: Sequence[Sample], read: ReadMask) -> bool:
    """Whether the first images look like class maps, and their masks like photographs."""
    swapped = []
    for sample in samples[:8]:
        try:
            values = read(sample.mask or sample.image).values
            image = focus(read_image(sample.image).max(axis=2))
        except DataError:
            continue
        swapped.append(
            image >= CLASS_MAP and focus(values if values.ndim == 2 else values.max(axis=2)) < PHOTO
        )
    return bool(swapped) and all(swapped)
