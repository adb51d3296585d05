"""Input pictures, held once each as sealed files in memory that sessions map read-only."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import OrderedDict

_F_ADD_SEALS = 1033
_F_SEAL_EVERYTHING = 1 | 2 | 4 | 8  # seal, shrink, grow, write


class Picture:
    """Encoded bytes in a file that nobody can change, closed when nothing refers to it."""

    def __init__(self, data: bytes):
        self.size = len(data)
        self.handle = os.memfd_create("picture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        view = memoryview(data)
        while view:
            view = view[os.write(self.handle, view) :]
        fcntl.fcntl(self.handle, _F_ADD_SEALS, _F_SEAL_EVERYTHING)

    def __del__(self) -> None:
        os.close(self.handle)


class PictureStore:
    """Pictures by principal and SHA-256, so that each crosses the network once however many sessions use it."""

    def __init__(self, max_bytes: int = 1 << 30, max_pictures: int = 4096):
        self._pictures: OrderedDict[tuple[str, bytes], Picture] = OrderedDict()
        self._bytes, self._max_bytes, self._max_pictures = 0, max_bytes, max_pictures

    def add(self, principal: str, data: bytes) -> None:
        key = principal, hashlib.sha256(data).digest()
        if key not in self._pictures:
            self._pictures[key] = Picture(data)
            self._bytes += len(data)
        self._pictures.move_to_end(key)
        while len(self._pictures) > 1 and (self._bytes > self._max_bytes or len(self._pictures) > self._max_pictures):
            self._bytes -= self._pictures.popitem(last=False)[1].size

    def get(self, principal: str, digest: bytes) -> Picture | None:
        key = principal, digest
        if key in self._pictures:
            self._pictures.move_to_end(key)
        return self._pictures.get(key)
