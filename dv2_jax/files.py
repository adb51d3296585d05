"""Atomic and durable writing of local files, and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

DATA_ENDINGS = (".parquet", ".jsonl", ".json")  # of files of rows; a folder of such files is one data set
PARTIAL = ".partial"  # suffix of a temporary file; a reader ignores it, and a killed writer may leave one


def atomic_write(path: str | Path, data: bytes | str, *, durable: bool = False) -> None:
    """Writes a file so that readers see the old content or all of the new one; missing parent folders are created.

    Text is encoded as UTF-8. With `durable`, file and folder are flushed to the disk (fsync), so that the content also survives
    a power failure.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full; an existing file is unchanged.
    """
    with _replaced_at_end(Path(path), "wb", durable) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


def atomic_writer(path: str | Path) -> contextlib.AbstractContextManager[IO[str]]:
    """Opens a text file (UTF-8) that appears under `path` only when the block ends without an error.

    It need not be held in memory, unlike the data of `atomic_write`, whose guarantees it has.
    """
    return _replaced_at_end(Path(path), "w", durable=False)


@contextlib.contextmanager
def _replaced_at_end(path: Path, mode: str, durable: bool) -> Iterator[IO[Any]]:
    """Opens a hidden temporary file in the same folder, which replaces `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
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
