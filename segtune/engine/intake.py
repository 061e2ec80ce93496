"""A run's data, opened and checked; imports no torch, so that wrong data is answered at once."""

from __future__ import annotations

from segtune.config.run import RunConfig
from segtune.data.base import DataIndex, Severity
from segtune.data.check import check_data
from segtune.data.check_report import CheckReport
from segtune.data.open import open_data
from segtune.engine.reporter import Reporter
from segtune.errors import DataError, UsageError


def take_in(config: RunConfig, reporter: Reporter) -> CheckReport:
    """Opens a run's data and checks all of it.

    Args:
        config: the complete settings.
        reporter: hears how the data is read, and every warning.

    Raises:
        UsageError: no data is named, or there is none.
        DataError: the data has errors that are not allowed, or nothing to train on.
    """
    if config.data_path is None:
        raise UsageError("DATA is missing", hint="name a folder or a manifest (data.path)")
    index = open_data(config.data_path, config.data)
    reporter.note(*index.evidence)
    check = check_data(index, config.data, reporter.evaluating)
    reporter.note(
        *(f"{f.severity}: {f.message} [{f.code}]" for f in check.findings if f.severity is Severity.WARNING)
    )
    usable = check.require_ok()
    if not any(sample.mask is not None for sample in usable.split("train")):
        raise DataError(
            f"{config.data_path} has no training images with masks",
            hint="see `segtune data check` for the splits",
        )
    return check


def usable_data(config: RunConfig, index: DataIndex) -> DataIndex:
    """The samples that a run would use: those with allowed errors are left out, as in training."""
    left_out = config.data.allow or index.expected
    return check_data(index, config.data).require_ok() if left_out else index
