"""Counts the rows of a benchmark's file for the listing, without checking them."""

from __future__ import annotations

from pathlib import Path

from dv2_jax.data.row_files import FileFault, iter_raw_rows
from dv2_jax.evaluation.readers.tsv_records import iter_records

_LARGEST = 200 * 2**20  # bytes of a text file that is read only to count its rows


def count_rows(path: Path) -> int | None:
    """Returns the number of rows of a TSV, parquet, JSON or JSONL file; None if it is unreadable or takes long to count."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_metadata(path).num_rows
        if path.stat().st_size > _LARGEST:
            return None
        if path.suffix == ".tsv":
            return max(0, sum(1 for _ in iter_records(path)) - 1)
        return sum(1 for _ in iter_raw_rows(path))
    except (FileFault, OSError, ValueError):  # the run that uses the file says what is wrong with it
        return None
