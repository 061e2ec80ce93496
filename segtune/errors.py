"""Every error a user can meet, as one tree.

    SegtuneError                  exit 1: the run failed
    ├── UsageError                exit 2: the command, a setting or a name is wrong
    │   ├── SettingsError         one or more settings are wrong, all of them in one report
    │   ├── UnknownNameError      no model, method, loss, metric or format of that name
    │   ├── NoSiteError           the method finds nothing to attach to on this model
    │   └── MissingExtraError     an optional package is not installed
    ├── DataError                 the data cannot be read or used
    ├── WeightsError              a weights file is missing, unreadable or does not fit
    ├── AdapterError              an adapter does not belong to this base, or is incomplete
    ├── MergeError                the adapter cannot be folded into the base, or parity failed
    └── TrainingError             not-a-number loss, out of memory

A message says what is wrong and with which value; the `hint` says what to do about it.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from typing import Any


class SegtuneError(Exception):
    """A failure that the user can understand and act on.

    Args:
        message: what is wrong, where, and the value that was found.
        hint: what to do about it; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors come back from worker processes; rebuilt from their state, since the arguments of
        # the constructors differ.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class UsageError(SegtuneError):
    """The command, a path, a setting or a name is wrong; nothing was started."""

    exit_code = 2


class SettingsError(UsageError):
    """One or more settings are wrong.

    Args:
        problems: one line (or block of lines) for each mistake, each with key, value and fix.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        title = "1 setting is wrong:" if count == 1 else f"{count} settings are wrong:"
        super().__init__("\n".join([title, *(f"  {problem}" for problem in self.problems)]))


class UnknownNameError(UsageError):
    """No component of this name is registered."""


class NoSiteError(UsageError):
    """A method finds no place to attach to; the message lists the kinds the model offers."""


class MissingExtraError(UsageError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            hint=f"pip install 'segtune[{extra}]'",
        )


class DataError(SegtuneError):
    """The data cannot be read or used as it is."""


class WeightsError(SegtuneError):
    """A weights file is missing, damaged, unsafe or of another architecture."""


class AdapterError(SegtuneError):
    """An adapter is incomplete, damaged, or was trained on another base."""


class MergeError(SegtuneError):
    """An adapter cannot be folded into its base, or the merged model does not agree with it."""


class TrainingError(SegtuneError):
    """Training cannot go on: not-a-number loss or out of memory."""
