"""Keeps the images of a benchmark in one temporary file, so that any of them can be read while memory holds none."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from pathlib import Path

from dv2_jax.data.images import ImageFile


class ImageSpool:
    """Encoded images by number. Equal images are stored once; one that was read from a file stays in its file.

    The temporary file (in `$TMPDIR`) has no name: it disappears with the process. Methods are safe in threads.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the spool
        self._places: list[tuple[int, int] | Path] = []  # (offset, length), or the image's own file
        self._numbers: dict[str, int] = {}  # by digest
        self._end = 0
        self._lock = threading.Lock()

    def add(self, image: bytes) -> tuple[int, str]:
        """Stores an image; returns its number and its digest (SHA-256).

        Raises:
            OSError: the disk is full.
        """
        digest = hashlib.sha256(image).hexdigest()
        with self._lock:
            if digest not in self._numbers:
                self._places.append(self._store(image))
                self._numbers[digest] = len(self._places) - 1
            return self._numbers[digest], digest

    def _store(self, image: bytes) -> tuple[int, int] | Path:
        if isinstance(image, ImageFile):
            return Path(image.path)
        offset, position = self._end, 0
        while position < len(image):
            position += os.pwrite(self._file.fileno(), image[position:], offset + position)
        self._end += len(image)
        return offset, len(image)

    def read(self, number: int) -> bytes:
        """Returns an image."""
        place = self._places[number]
        if isinstance(place, Path):
            return ImageFile.read(place)
        return os.pread(self._file.fileno(), place[1], place[0])
