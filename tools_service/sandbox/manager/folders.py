"""Measures and removes work folders with hostile contents: deep nesting, missing permissions, symbolic links.

All access is relative to folder descriptors that are opened with O_NOFOLLOW, so that no name leads out of the folder
and no path exceeds PATH_MAX.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

MAX_DEPTH = 64  # levels that are measured: each costs a descriptor
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class FolderUsage:
    """Size of a folder's contents."""

    bytes: int = 0  # allocated on disk
    inodes: int = 0
    too_deep: bool = False  # folders nested deeper than `MAX_DEPTH` were not measured


def measure(folder: str, max_bytes: int, max_inodes: int) -> FolderUsage:
    """Sums the contents of `folder`, until a maximum is exceeded. A missing folder counts as empty."""
    usage = FolderUsage()
    stack: list[tuple[int, Iterator[str]]] = []
    try:
        _descend(stack, folder, None)
        while stack and usage.bytes <= max_bytes and usage.inodes <= max_inodes:
            fd, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            with contextlib.suppress(OSError):
                status = os.lstat(name, dir_fd=fd)
                usage.inodes += 1
                usage.bytes += status.st_blocks * 512
                if status.st_mode & 0o170000 == 0o040000:
                    if len(stack) >= MAX_DEPTH:
                        usage.too_deep = True
                        break
                    _descend(stack, name, fd)
    finally:
        for fd, _ in stack:
            os.close(fd)
    return usage


def remove(folder: str) -> None:
    """Removes `folder` at any depth and with any permissions. No process may write to it meanwhile."""
    stack: list[tuple[int, Iterator[str]]] = []
    _descend(stack, folder, None)
    if not stack:
        return
    top = stack[0][0]
    try:
        # Nested folders are renamed into the top folder before their parent is removed: no recursion by depth.
        while folders := [name for name in _names(top) if not _unlink(name, top)]:
            for name in folders:
                _empty_into(top, name)
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _empty_into(top: int, name: str) -> None:
    inner = _open(name, top)
    if inner is not None:
        try:
            for child in _names(inner):
                if not _unlink(child, inner):
                    if (
                        fd := _open(child, inner)
                    ) is not None:  # `_open` restores write permission, which renaming needs to update ".."
                        os.close(fd)
                    os.rename(child, secrets.token_hex(8), src_dir_fd=inner, dst_dir_fd=top)
        finally:
            os.close(inner)
    os.rmdir(name, dir_fd=top)


def _unlink(name: str, fd: int) -> bool:
    """Unlinks an entry that is no folder; returns False for a folder."""
    try:
        os.unlink(name, dir_fd=fd)
    except IsADirectoryError:
        return False
    return True


def _descend(stack: list[tuple[int, Iterator[str]]], name: str, parent: int | None) -> None:
    fd = _open(name, parent)
    if fd is not None:
        stack.append((fd, iter(_names(fd))))


def _open(name: str, parent: int | None) -> int | None:
    """Opens a folder, after restoring its owner's permissions if the session removed them; None on failure."""
    try:
        path = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        return None
    try:
        if os.fstat(path).st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{path}", 0o700)
        return os.open(f"/proc/self/fd/{path}", _OPEN & ~os.O_NOFOLLOW)
    except OSError:
        return None
    finally:
        os.close(path)


def _names(fd: int) -> list[str]:
    try:
        return os.listdir(fd)
    except OSError:
        return []
