"""Reads the output of a cell from the memory files (memfd) that its stdout and stderr are."""

from __future__ import annotations

import os


def read_output(descriptor: int, limit: int) -> bytes:
    """Returns the output written to a stream's memfd; above `limit` bytes, its head and tail with a note between."""
    size = os.lseek(descriptor, 0, os.SEEK_CUR)
    if size <= limit:
        return os.pread(descriptor, size, 0)
    half = limit // 2
    note = f"\n... {size - 2 * half} bytes left out ...\n".encode()
    return os.pread(descriptor, half, 0) + note + os.pread(descriptor, half, size - half)
