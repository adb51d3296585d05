"""Landlock: what of the file tree a session may read, write and execute; no TCP; no signals outwards.

Rights by ABI version: kernel documentation, userspace-api/landlock.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

from tools_service.sandbox.confinement import linux

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # number of filesystem rights that the kernel knows
_CREATE_VERSION = 1
_RULE_PATH_BENEATH = 1

READ = _READ_FILE | _READ_DIR | _EXECUTE
LIST = _READ_DIR
EVERYTHING = ~0


def abi() -> int:
    """Landlock ABI version of the running kernel; 0 if there is none."""
    try:
        return linux.syscall("landlock_create_ruleset", 0, 0, _CREATE_VERSION)
    except (OSError, KeyError):
        return 0


def restrict(version: int, rules: Sequence[tuple[str, int]]) -> None:
    """Confines this process and its descendants to ``rules``: (path, rights beneath it).

    A path that does not exist is skipped; it could not be used anyway. no_new_privs must be set.
    """
    known = (1 << _BY_ABI.get(version, 16)) - 1
    attributes = struct.pack("=Q", known)
    if version >= 4:
        attributes += struct.pack("=Q", 3)  # TCP bind and connect
    if version >= 6:
        attributes += struct.pack("=Q", 3)  # abstract unix sockets and signals stay inside
    ruleset = linux.syscall(
        "landlock_create_ruleset", ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0
    )
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & known)
        linux.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, handle)
        linux.syscall("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, ctypes.create_string_buffer(rule, len(rule)), 0)
    finally:
        os.close(handle)
