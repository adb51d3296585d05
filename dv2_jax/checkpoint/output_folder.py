"""Atomic creation of an output folder, local or on any file system that fsspec supports (`gs://bucket/policy`)."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dv2_jax.parallel import distributed

INCOMPLETE = ".incomplete"  # marker file of a folder on an object store that is still being written


class OutputFolder:
    """Writer for the files of one folder. Process 0 writes; the bytes of the other processes are discarded."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str):
        self._filesystem, self._path = filesystem, path

    def create(self, name: str) -> BinaryIO:
        """Open a new file for writing bytes."""
        return self._filesystem.open(f"{self._path}/{name}", "wb") if distributed.is_main() else _NullWriter()

    def write_text(self, name: str, text: str) -> None:
        """Write a new UTF-8 file."""
        with self.create(name) as stream:
            stream.write(text.encode("utf-8"))


class _NullWriter(io.BytesIO):
    """A stream that discards all bytes."""

    def write(self, data) -> int:
        return memoryview(data).nbytes


@contextlib.contextmanager
def output_folder(location: str | Path) -> Iterator[OutputFolder]:
    """Create the folder `location`; collective: every process enters it and writes the same files.

    A local folder is written under a temporary name and renamed at the end of the block. An object store cannot rename a
    folder, so it has the marker file `.incomplete` until the end; a folder with the marker is a killed write and is
    overwritten. The caller writes last the file by which readers recognize a complete folder.

    Raises:
        FileExistsError: the folder is not empty.
        ImportError: the package for this file system is not installed.
        ValueError: fsspec does not support this file system.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(str(location))
    except ImportError as error:
        raise ImportError(f"{location}: {error} (for gs://: pip install 'dv2_jax[gcs]')") from None
    if distributed.broadcast_from_main(_is_taken(filesystem, path) if distributed.is_main() else False):
        raise FileExistsError(f"{location} is not empty: choose another folder, or remove it first")
    commit = _rename_commit if isinstance(filesystem, LocalFileSystem) else _marker_commit
    with commit(filesystem, path) as folder:
        yield folder


def _is_taken(filesystem: fsspec.AbstractFileSystem, path: str) -> bool:
    if not filesystem.exists(path):
        return False
    names = {name.rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=False)}
    return bool(names) and INCOMPLETE not in names


@contextlib.contextmanager
def _rename_commit(filesystem: LocalFileSystem, path: str) -> Iterator[OutputFolder]:
    """Write to a temporary folder and rename it at the end of the block."""
    final = Path(path)
    staging = final.parent / f".{final.name}.{os.getpid()}"
    if not distributed.is_main():
        yield OutputFolder(filesystem, str(staging))
        return
    filesystem.makedirs(str(staging))
    try:
        yield OutputFolder(filesystem, str(staging))
        if final.exists():
            final.rmdir()
        os.replace(staging, final)
    finally:
        if staging.exists():
            filesystem.rm(str(staging), recursive=True)


@contextlib.contextmanager
def _marker_commit(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[OutputFolder]:
    """Write in place with the marker file `.incomplete`, which is removed at the end of the block."""
    folder, marker = OutputFolder(filesystem, path), f"{path}/{INCOMPLETE}"
    if not distributed.is_main():
        yield folder
        return
    filesystem.makedirs(path, exist_ok=True)
    filesystem.pipe_file(marker, b"this folder is being written, or its writer was killed\n")
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):
            filesystem.rm(path, recursive=True)
        raise
    filesystem.rm_file(marker)
