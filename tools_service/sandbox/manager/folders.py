"""Measures and removes work folders whose contents are hostile: nested without end, locked, full of links.

Everything goes through descriptors of folders, opened without following links, so that no name can lead out
and no path can grow too long to be looked at.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

MAX_DEPTH = 64  # levels that are looked into: each costs a descriptor
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Usage:
    """What lies below a folder."""

    bytes: int = 0  # allocated on disk
    inodes: int = 0
    too_deep: bool = False  # there is more below ``MAX_DEPTH`` levels


def measure(folder: str, max_bytes: int, max_inodes: int) -> Usage:
    """Adds up ``folder``, and stops as soon as one maximum is passed. A folder that is gone is empty."""
    usage = Usage()
    stack: list[tuple[int, Iterator[str]]] = []
    try:
        _descend(stack, folder, None)
        while stack and usage.bytes <= max_bytes and usage.inodes <= max_inodes:
            handle, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            with contextlib.suppress(OSError):
                status = os.lstat(name, dir_fd=handle)
                usage.inodes += 1
                usage.bytes += status.st_blocks * 512
                if status.st_mode & 0o170000 == 0o040000:
                    if len(stack) >= MAX_DEPTH:
                        usage.too_deep = True
                        break
                    _descend(stack, name, handle)
    finally:
        for handle, _ in stack:
            os.close(handle)
    return usage


def remove(folder: str) -> None:
    """Removes ``folder`` and all below it, in any depth and whatever its permissions. Nobody may be writing there."""
    stack: list[tuple[int, Iterator[str]]] = []
    _descend(stack, folder, None)
    if not stack:
        return
    top = stack[0][0]
    try:
        # Folders inside folders are moved to the top before their parent goes: no depth is ever climbed.
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
                    if (handle := _open(child, inner)) is not None:  # made writable: moving it writes its ".."
                        os.close(handle)
                    os.rename(child, secrets.token_hex(8), src_dir_fd=inner, dst_dir_fd=top)
        finally:
            os.close(inner)
    os.rmdir(name, dir_fd=top)


def _unlink(name: str, handle: int) -> bool:
    """Removes anything but a folder; False for a folder."""
    try:
        os.unlink(name, dir_fd=handle)
    except IsADirectoryError:
        return False
    return True


def _descend(stack: list[tuple[int, Iterator[str]]], name: str, parent: int | None) -> None:
    handle = _open(name, parent)
    if handle is not None:
        stack.append((handle, iter(_names(handle))))


def _open(name: str, parent: int | None) -> int | None:
    """A folder's descriptor; its owner's rights are restored first where the session took them away."""
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


def _names(handle: int) -> list[str]:
    try:
        return os.listdir(handle)
    except OSError:
        return []
