"""Content-addressed store of input images: sealed memory files (memfd) that sessions map read-only."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import OrderedDict

_F_ADD_SEALS = 1033
_F_SEAL_ALL = 1 | 2 | 4 | 8  # seal, shrink, grow, write


class SealedImage:
    """Encoded bytes in a sealed, hence immutable, memfd; closed when the last reference goes."""

    def __init__(self, data: bytes):
        self.size = len(data)
        self.fd = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]
        fcntl.fcntl(self.fd, _F_ADD_SEALS, _F_SEAL_ALL)

    def __del__(self) -> None:
        os.close(self.fd)


class ImageStore:
    """LRU store by (principal, SHA-256): an image is uploaded once, however many sessions use it."""

    def __init__(self, max_bytes: int = 1 << 30, max_images: int = 4096):
        self._images: OrderedDict[tuple[str, bytes], SealedImage] = OrderedDict()
        self._bytes, self._max_bytes, self._max_images = 0, max_bytes, max_images

    def add(self, principal: str, data: bytes) -> None:
        key = principal, hashlib.sha256(data).digest()
        if key not in self._images:
            self._images[key] = SealedImage(data)
            self._bytes += len(data)
        self._images.move_to_end(key)
        while len(self._images) > 1 and (self._bytes > self._max_bytes or len(self._images) > self._max_images):
            self._bytes -= self._images.popitem(last=False)[1].size

    def get(self, principal: str, digest: bytes) -> SealedImage | None:
        key = principal, digest
        if key in self._images:
            self._images.move_to_end(key)
        return self._images.get(key)
