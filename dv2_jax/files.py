"""Atomic and durable writing of local files, and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

DATA_ENDINGS = (".parquet", ".jsonl", ".json")  # of files of rows; a folder of such files is one data set
PARTIAL = ".partial"  # suffix of a temporary file; a reader ignores it, and a killed writer may leave one


def atomic_write(path: str | Path, data: bytes | str, *, durable: bool = False) -> None:
    """Writes a file so that readers see the old content or all of the new one; missing parent folders are created.

    The data goes to a hidden temporary file in the same folder, which is then renamed; text is encoded as UTF-8. With
    `durable`, file and folder are flushed to the disk (fsync), so that the content also survives a power failure.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full; an existing file is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    if durable:
        _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_writer(path: str | Path) -> Iterator[IO[str]]:
    """Opens a text file (UTF-8) that appears under `path` only when the block ends without an error.

    It is written to a hidden temporary file in the same folder, so that a long file need not be held in memory.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full; an existing file is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def file_digest(path: str | Path) -> str:
    """Returns the SHA-256 of a file's content as hexadecimal text. Reads in chunks, so memory does not grow."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_set_digest(files: Iterable[Path]) -> str:
    """Returns the SHA-256 of the names and contents of the files of a data set as hexadecimal text."""
    lines = "".join(f"{file_digest(file)} {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Flushes a folder's entries, among them a rename, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems reject fsync of a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
