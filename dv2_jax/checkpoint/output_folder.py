"""A folder that appears whole or not at all: here, or on any file system that fsspec knows (``gs://bucket/policy``)."""

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

INCOMPLETE = ".incomplete"  # lies in a folder on an object store while it is being written


class OutputFolder:
    """Where the files of one folder go. Process 0 keeps what it writes, the others' bytes are dropped."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str):
        self._filesystem, self._path = filesystem, path

    def create(self, name: str) -> BinaryIO:
        """A new file, open for bytes."""
        return self._filesystem.open(f"{self._path}/{name}", "wb") if distributed.is_main() else _Dropped()

    def write_text(self, name: str, text: str) -> None:
        with self.create(name) as stream:
            stream.write(text.encode("utf-8"))


class _Dropped(io.BytesIO):
    def write(self, data) -> int:
        return memoryview(data).nbytes


@contextlib.contextmanager
def output_folder(location: str | Path) -> Iterator[OutputFolder]:
    """The new folder ``location``; every process of a run enters it and writes the same files.

    Locally the files lie under another name until the block ends. An object store cannot rename a folder: there,
    ``.incomplete`` lies in it to the end, a folder with it is taken for a killed write and written again, and the
    caller writes last what makes others take the folder for complete.

    Raises:
        FileExistsError: the folder holds anything.
        ImportError: no package is installed for this kind of location.
        ValueError: fsspec knows no such kind.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(str(location))
    except ImportError as error:
        raise ImportError(f"{location}: {error} (for gs://: pip install 'dv2_jax[gcs]')") from None
    if distributed.agree(_is_taken(filesystem, path) if distributed.is_main() else False):
        raise FileExistsError(f"{location} is not empty: name another folder, or remove it first")
    write = _renamed if isinstance(filesystem, LocalFileSystem) else _marked
    with write(filesystem, path) as folder:
        yield folder


def _is_taken(filesystem: fsspec.AbstractFileSystem, path: str) -> bool:
    if not filesystem.exists(path):
        return False
    names = {name.rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=False)}
    return bool(names) and INCOMPLETE not in names


@contextlib.contextmanager
def _renamed(filesystem: LocalFileSystem, path: str) -> Iterator[OutputFolder]:
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
def _marked(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[OutputFolder]:
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
