"""Append-only files of JSON lines: a line is complete or is ignored, and a full disk costs no line that was written."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dv2_jax.parallel.outage import ServiceOutage

SYNC_S = 5.0  # seconds after which written lines are flushed to the disk at the latest, with the next line


class StorageFailure(ServiceOutage):
    """A record cannot be written, for example because the disk is full. All hosts stop together, as for an outage."""


class RecordFile:
    """Appends documents to a file, one line and one write each. Thread-safe; opened with the first line."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._end = 0
        self._synced = time.monotonic()

    def append(self, document: Mapping[str, Any]) -> int:
        """Appends a line and returns its offset. It survives a kill of the process, and after `SYNC_S` a power failure.

        Raises:
            StorageFailure: the disk is full or the file cannot be written; the lines before are unchanged.
        """
        line = (json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8", "replace")
        with self._lock:
            try:
                descriptor = self._open()
                start, view = self._end, memoryview(line)
                while view:
                    view = view[os.write(descriptor, view) :]
                self._end += len(line)
                if time.monotonic() - self._synced >= SYNC_S:
                    self._sync(descriptor)
            except OSError as error:
                self._drop_incomplete_line()
                raise write_failure(self.path, error) from error
        return start

    def close(self) -> None:
        """Flushes the file to the disk and closes it."""
        with self._lock:
            if self._descriptor is not None:
                self._sync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            self._end = os.fstat(self._descriptor).st_size
            if self._end and os.pread(self._descriptor, 1, self._end - 1) != b"\n":  # the last writer was killed
                self._end += os.write(self._descriptor, b"\n")
        return self._descriptor

    def _sync(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):  # some network file systems and devices reject it
            os.fsync(descriptor)
        self._synced = time.monotonic()

    def _drop_incomplete_line(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end)


def write_failure(path: Path, error: OSError) -> StorageFailure:
    """Returns the error of a record that could not be written."""
    reason = error.strerror or str(error)
    return StorageFailure(
        f"{path}: {reason}; every answer before is stored: free space there and run the same command again"
    )


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (offset, document) of every complete line; incomplete ones are skipped with a warning that counts them."""
    incomplete = offset = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                document = json.loads(line)
            except ValueError:
                document = None
            if isinstance(document, dict):
                yield offset, document
            else:
                incomplete += bool(line.strip())
            offset += len(line)
    if incomplete:
        warnings.warn(f"{path}: {incomplete} incomplete lines were skipped", stacklevel=2)


def read_line(path: Path, offset: int) -> dict[str, Any]:
    """Reads the document at an offset that `RecordFile.append` or `read_lines` has given."""
    with open(path, "rb") as file:
        file.seek(offset)
        return json.loads(file.readline())


def host_files(folder: Path, name: str) -> list[Path]:
    """Returns the existing files `name`.jsonl of all hosts: in the folder itself, and in `host-N` for further hosts."""
    paths = [folder / f"{name}.jsonl", *sorted(folder.glob(f"host-*/{name}.jsonl"))]
    return [path for path in paths if path.is_file()]


def host_file(folder: Path, name: str, host: int) -> Path:
    """Returns the file to which a host appends."""
    return (folder / f"host-{host}" if host else folder) / f"{name}.jsonl"
