"""Keeps the results of data checks, so that a second start with the same content and settings does not check again.

A result holds for the SHA-256 digest of the files, for the settings and the code of the check, and for the size and
time of every image file that the rows name. A file whose size, times and inode are unchanged is not hashed again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dv2_jax.data.faults import DataReport
from dv2_jax.files import atomic_write, data_set_digest

_BLOCK = 1 << 22  # bytes read at a time


def default_cache_folder() -> Path:
    """Returns the folder of results in the user's cache (`$XDG_CACHE_HOME` or `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dv2_jax" / "data_checks"


class ValidationCache:
    """The stored result of one check of `files`; does nothing if `folder` is None or cannot be written."""

    def __init__(self, folder: Path | None, path: str | Path, files: Sequence[Path], settings: Mapping[str, Any]):
        self._files, self._path = files, str(path)
        self._state = _state(files)
        self._entry = None
        if folder is not None:
            key = json.dumps([str(Path(path).resolve()), settings, _code_digest()], sort_keys=True)
            self._entry = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def load(self) -> DataReport | None:
        """Returns the stored report if files and images are still the same."""
        if self._entry is None:
            return None
        try:
            document = json.loads(self._entry.read_text(encoding="utf-8"))
            same = document["files"] == self._state or document["digest"] == data_set_digest(self._files)
            if not same or document["image_state"] != _state_digest(map(Path, document["images"])):
                return None
            report = DataReport.from_dict(document["report"])
        except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged: the data is checked again
            return None
        report.path, report.cached = self._path, True
        return report

    def store(self, report: DataReport, image_paths: Iterable[Path]) -> None:
        """Stores a report, unless the files have changed since the check began."""
        if self._entry is None or _state(self._files) != self._state:
            return
        names = sorted(str(path.absolute()) for path in image_paths)
        document = {
            "files": self._state,
            "digest": data_set_digest(self._files),
            "images": names,
            "image_state": _state_digest(map(Path, names)),
            "report": report.to_dict(),
        }
        with contextlib.suppress(OSError):  # a read-only or full home: the next start checks again
            atomic_write(self._entry, json.dumps(document))


def estimate_rows(file: Path) -> int:
    """Returns the number of rows of a file, an estimate for a JSON list, without parsing it."""
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_metadata(file).num_rows
        marks = (b"\n",) if file.suffix == ".jsonl" else (b'"messages"', b'"prompt"')
        return sum(block.count(mark) for block in _blocks(file) for mark in marks)
    except Exception:  # only for the progress bar; the check itself reports what is wrong with the file
        return 0


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            yield block


def _state(files: Sequence[Path]) -> list[list]:
    """Returns what changes with a file's content: name, size, times of content and inode, inode."""
    stats = [(file.name, file.stat()) for file in files]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats]


def _state_digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
            digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except (OSError, ValueError):
            digest.update(f"{path} missing\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


@functools.cache
def _code_digest() -> str:
    """Returns the digest of the code that decides what a fault is, so that no result of older code is used."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for source in sorted([*(package / "data").glob("*.py"), *(package / "rewards").glob("*.py")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()
