"""Opens a data set: finds its format, reads it, divides it into splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from segtune.data import FORMATS, is_hub, is_there
from segtune.data.base import SPLITS, DataIndex, Finding, Sample, Severity
from segtune.data.channels import ChannelRule, channel_rule
from segtune.data.description import ListedSplit, read_description
from segtune.data.files import read_header
from segtune.data.findings import allowed
from segtune.data.options import check_options
from segtune.data.settings import DataSettings
from segtune.data.split import listed_split, set_groups, split_samples
from segtune.errors import DataError, UsageError


def open_data(root: Path | str, settings: DataSettings | None = None) -> DataIndex:
    """Opens a data set in whatever format it lies there.

    Args:
        root: a folder, a file that describes the data (CSV, JSON), or hf:owner/name.
        settings: how to read it; what is not stated is found out.

    Returns:
        The samples with a split each, the classes, the evidence for both, and what was noticed.
        Findings whose code `settings.allow` names are warnings.

    Raises:
        UsageError: there is no such path, or the settings are wrong.
        DataError: no format fits, or the data cannot be understood.
    """
    root = Path(root)
    settings = settings or DataSettings()
    if not is_there(root):
        parent = next(p for p in root.absolute().parents if p.is_dir())
        raise UsageError(
            f"there is no data at {root}",
            hint=f"{parent} holds {_listing(parent)}; relative paths count from {Path.cwd()}",
        )
    description = read_description(root)
    settings = description.merge(settings)
    name, reason = ("hf_dataset", "a name of the hub") if is_hub(root) else _find_format(root, settings)
    check_options(name, settings)
    index: DataIndex = FORMATS.load(name)().read(root, settings)

    index = _with_channels(index, settings)

    samples, ungrouped = set_groups(index.samples, settings.group)
    findings = list(index.findings)
    if ungrouped:
        findings.append(
            Finding(
                severity=Severity.WARNING,
                code="sample-without-group",
                message=f"data.group does not match {len(ungrouped)} of {len(samples)} names: "
                + ", ".join(ungrouped[:3]),
                hint="each of these counts as a group of its own",
            )
        )
    if isinstance(description.split, ListedSplit):
        samples, listed = listed_split(samples, description.split)
        findings += listed
        if not samples:
            raise DataError(
                f"{root}: the lists of `split` in dataset.yaml match no sample",
                hint=f"entries are names such as {index.samples[0].name!r}, or globs of them",
            )
    samples, evidence, more = split_samples(samples, settings)
    if settings.limit is not None:
        samples = _limited(samples, settings.limit)
        evidence.append(f"data.limit keeps at most {settings.limit} samples of each split")
    findings = [allowed(finding, settings) for finding in [*findings, *more]]
    index = replace(
        index,
        samples=tuple(samples),
        evidence=(f"format {name}: {reason}", *index.evidence, *evidence),
        findings=tuple(findings),
    )
    return index if index.settle is None else index.settle(index)


def _with_channels(index: DataIndex, settings: DataSettings) -> DataIndex:
    """The data with the channels that the settings state, or that its first image has."""
    rule = getattr(index.reader, "channels", None)
    if not isinstance(rule, ChannelRule):  # the format's own matter
        return index
    rule = channel_rule(settings)
    number = 3
    if rule.bands is not None:
        number = len(rule.bands)
    elif index.samples[0].image.suffix.lower() in (".tif", ".tiff"):  # others have four at most
        try:
            number = rule.num_channels(read_header(index.samples[0].image).channels)
        except DataError:  # the data check names it
            number = 3
    rule = replace(rule, expected=number)
    said = [] if number == 3 else [f"images have {number} channels"]
    if rule.bands is not None:
        said = [f"channels {', '.join(map(str, rule.bands))} of the images, as stated"]
    return replace(
        index,
        reader=replace(index.reader, channels=rule),  # type: ignore[type-var]
        channels=number,
        evidence=(*index.evidence, *said),
    )


def _find_format(root: Path, settings: DataSettings) -> tuple[str, str]:
    if settings.format != "auto":
        FORMATS.check(settings.format)
        return settings.format, "as stated"
    for name in FORMATS:
        reason = FORMATS.load(name)().detect(root)
        if reason is not None:
            return name, reason
    looked_for = "\n".join(f"  {name}: {FORMATS.summary(name)}" for name in FORMATS)
    holds = f"it holds {_listing(root)}" if root.is_dir() else f"it is a file of {root.stat().st_size} bytes"
    raise DataError(
        f"{root} is no data set of a known kind; {holds}. Looked for:\n{looked_for}",
        hint="put images into images/ and masks into masks/, or list the pairs in a CSV file with the "
        "columns image,mask",
    )


def _listing(folder: Path) -> str:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        return f"what cannot be listed ({error.strerror})"
    if not entries:
        return "nothing"
    shown = ", ".join(entry.name + ("/" if entry.is_dir() else "") for entry in entries[:8])
    return shown + (f" and {len(entries) - 8} more" if len(entries) > 8 else "")


def _limited(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most so many samples (whole volumes) of each split, spread evenly over their order."""
    kept = set()
    for split in SPLITS:
        own = list(dict.fromkeys(sample.case for sample in samples if sample.split == split))
        count = min(limit, len(own))
        kept |= {(split, own[i * len(own) // count]) for i in range(count)}
    return [sample for sample in samples if (sample.split, sample.case) in kept]
