"""Findings about files and what the settings allow of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from segtune.data.base import Finding, Severity
from segtune.data.settings import DataSettings


def relative(root: Path, paths: Iterable[Path]) -> tuple[str, ...]:
    """Paths as findings show them: relative to the root, with forward slashes."""
    return tuple(path.relative_to(root).as_posix() for path in paths)


def file_finding(
    severity: Severity, code: str, what: str, root: Path, paths: Sequence[Path], hint: str
) -> list[Finding]:
    """One finding about files, or none where there are no files.

    Args:
        severity: of the finding.
        code: of the finding.
        what: the message in front of the number of files, e.g. "images without a mask".
        root: folder that the files lie in.
        paths: the files.
        hint: what to do.
    """
    if not paths:
        return []
    files = relative(root, paths)
    shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    return [
        Finding(
            severity=severity, code=code, message=f"{what} ({len(files)}): {shown}", files=files, hint=hint
        )
    ]


def number_of(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun, e.g. "1 class", "3 classes"."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def allowed(finding: Finding, settings: DataSettings, expected: Sequence[str] = ()) -> Finding:
    """The finding, or a warning in its place where it is an error that is allowed.

    Args:
        finding: any.
        settings: `settings.allow` names the codes that the user allows.
        expected: codes that the format's published files are known to have.
    """
    if finding.severity is not Severity.ERROR or finding.code not in (*settings.allow, *expected):
        return finding
    why = "allowed by data.allow" if finding.code in settings.allow else "known of the published files"
    return replace(finding, severity=Severity.WARNING, message=f"{finding.message} (an error, {why})")
