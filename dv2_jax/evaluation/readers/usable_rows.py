"""Applies `data.bad_rows` to the faults that a reader of files has found."""

from __future__ import annotations

import logging

from dv2_jax.config import DataConfig
from dv2_jax.data.faults import DataReport, RowError

_log = logging.getLogger(__name__)


def apply_bad_rows(report: DataReport, data: DataConfig) -> None:
    """Returns if the rows without faults may be used, with a warning about the others.

    Raises:
        RowError: `data.bad_rows` is `error`, too many rows have faults, or no row is usable.
    """
    bad = len(report.bad_rows)
    if report.file_faults or not report.usable:
        what = "a file that cannot be read to its end is never used" if report.file_faults else "no row can be used"
        raise RowError(f"{report.summary()}\n{what}")
    if bad and data.bad_rows == "error":
        raise RowError(f"{report.summary()}\nfix these rows, or leave them out with --config.data.bad_rows=skip")
    if bad > data.max_bad_fraction * report.rows:
        raise RowError(
            f"{report.summary()}\n{bad / report.rows:.1%} of the rows have faults, more than data.max_bad_fraction ="
            f" {data.max_bad_fraction:.1%}: fix them, or raise it"
        )
    if bad:
        _log.warning("left out: %d of %d rows\n%s", bad, report.rows, report.summary())
