"""What the data check found, as an object, as text and as JSON values."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segtune.data.base import SPLITS, DataIndex, Finding, Severity
from segtune.data.findings import number_of
from segtune.data.inspection import Inspection
from segtune.data.suspects import Suspect, suspect_findings
from segtune.errors import DataError

BAR = 24
"""Length of the longest bar of the class histogram, in characters."""
SEVERITIES = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}
"""The order in which findings are told."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What the data check found."""

    root: Path
    format: str
    num_classes: int
    class_names: tuple[str, ...]
    ignore_index: int
    """The ignored value in memory; the one in the files stands in `details`."""
    splits: Mapping[str, int]
    """Number of samples of each split."""
    findings: tuple[Finding, ...]
    """Errors first."""
    evidence: tuple[str, ...]
    class_pixels: Mapping[str, tuple[int, ...]]
    """Split -> pixels of each class."""
    ignored_pixels: Mapping[str, int]
    """Split -> pixels that count for nothing."""
    image_sizes: Mapping[tuple[int, int], int]
    """(height, width) -> number of images, the most frequent first."""
    mask_values: Mapping[int, tuple[int, int]]
    """Grey value or index in the mask files -> its pixels, masks that hold it; empty where colours decide."""
    details: Mapping[str, Any]
    usable: DataIndex
    """The data without the samples that cannot be read or whose sizes do not fit."""
    inspections: tuple[Inspection, ...]
    """What each image or volume holds."""
    suspects: tuple[Suspect, ...] = ()
    """Images whose masks a run finds unlikely, where one was asked."""

    def with_suspects(self, suspects: Sequence[Suspect]) -> CheckReport:
        """The report with what a run has said, as warnings behind those that stand there."""
        found = [*self.findings, *suspect_findings(self.usable, suspects)]
        ordered = sorted(found, key=lambda finding: SEVERITIES[finding.severity])
        return replace(self, findings=tuple(ordered), suspects=tuple(suspects))

    @property
    def ok(self) -> bool:
        """Whether a run may start: there is no error."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)

    @property
    def verdict(self) -> str:
        """Whether the data can be trained on, in one line."""
        counts = Counter(finding.severity for finding in self.findings)
        errors, warnings = counts[Severity.ERROR], counts[Severity.WARNING]
        found = f"{number_of(errors, 'error')}, {number_of(warnings, 'warning')}"
        if errors:
            return f"not ready: {found}"
        splits = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        return f"ready to train: {self.num_classes} classes, {splits} ({found})"

    def require_ok(self) -> DataIndex:
        """The usable data.

        Raises:
            DataError: there are errors that `data.allow` does not name.
        """
        errors = [finding for finding in self.findings if finding.severity is Severity.ERROR]
        if errors:
            codes = sorted({finding.code for finding in errors})
            lines = [f"  {finding.code}: {finding.message}" for finding in errors]
            raise DataError(
                "\n".join([f"{self.root}: the data check found {number_of(len(errors), 'error')}:", *lines]),
                hint=f"see `segtune data check {self.root}`; to go on all the same: "
                f"data.allow=[{', '.join(codes)}]",
            )
        return self.usable

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "root": str(self.root),
            "format": self.format,
            "ok": self.ok,
            "verdict": self.verdict,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "ignore_index": self.ignore_index,
            "splits": dict(self.splits),
            "findings": [
                {**asdict(finding), "severity": finding.severity.value, "files": list(finding.files)}
                for finding in self.findings
            ],
            "evidence": list(self.evidence),
            "class_pixels": {split: list(pixels) for split, pixels in self.class_pixels.items()},
            "ignored_pixels": dict(self.ignored_pixels),
            "image_sizes": [
                {"height": height, "width": width, "count": count}
                for (height, width), count in self.image_sizes.items()
            ],
            "mask_values": [
                {"value": value, "pixels": pixels, "masks": masks}
                for value, (pixels, masks) in self.mask_values.items()
            ],
            "details": dict(self.details),
            "suspects": [
                {
                    "name": suspect.sample.case,
                    "split": suspect.sample.split,
                    "loss": suspect.loss,
                    "median": suspect.median,
                    "deviations": suspect.deviations,
                }
                for suspect in self.suspects
            ],
        }

    def histogram(self) -> str:
        """The share of pixels of each class in each split, as text."""
        splits = [split for split in SPLITS if split in self.class_pixels]
        totals = {split: max(sum(self.class_pixels[split]), 1) for split in splits}
        shares = {split: [n / totals[split] for n in self.class_pixels[split]] for split in splits}
        width = max(len(name) for name in (*self.class_names, "(ignored)"))
        lines = [f"{'class':<{width}}" + "".join(f"{split:>9}" for split in splits)]
        largest = max((shares[splits[0]] if splits else [0.0]), default=0.0) or 1.0
        for label, name in enumerate(self.class_names):
            cells = "".join(f"{percent(shares[split][label]):>9}" for split in splits)
            bar = "#" * round(shares[splits[0]][label] / largest * BAR) if splits else ""
            lines.append(f"{name:<{width}}{cells}  {bar}".rstrip())
        ignored = {
            split: self.ignored_pixels[split]
            / max(self.ignored_pixels[split] + sum(self.class_pixels[split]), 1)
            for split in splits
        }
        if any(ignored.values()):
            lines.append(
                f"{'(ignored)':<{width}}" + "".join(f"{percent(ignored[split]):>9}" for split in splits)
            )
        return "\n".join(lines)

    def text(self) -> str:
        """The whole report for a reader."""
        sizes = ", ".join(f"{h} x {w} ({n})" for (h, w), n in itertools.islice(self.image_sizes.items(), 4))
        more = len(self.image_sizes) - 4
        splits = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        lines = [f"{self.root}: {self.verdict}"]
        for finding in self.findings:
            lines.append(f"  {finding.severity.value} [{finding.code}] {finding.message}")
            lines.append(f"    fix: {finding.hint}")
        lines += [
            "",
            *(f"  {line}" for line in self.evidence),
            f"  {self.num_classes} classes; {splits}; height x width {sizes}"
            + (f" and {more} more" if more > 0 else ""),
            "",
            *(f"  {line}" for line in self.histogram().splitlines()),
        ]
        return "\n".join(lines)


def percent(share: float) -> str:
    """A share in [0, 1] as text."""
    if share == 0:
        return "0%"
    return "<0.01%" if share < 0.0001 else f"{share:.2%}" if share < 0.01 else f"{share:.1%}"
