"""Restricts a session with Landlock: file access by path, no TCP, no signals to processes outside the domain.

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

READ_AND_EXECUTE = _READ_FILE | _READ_DIR | _EXECUTE
LIST_FOLDER = _READ_DIR
ALL_RIGHTS = ~0


def abi_version() -> int:
    """Returns the Landlock ABI version of the running kernel; 0 without Landlock."""
    try:
        return linux.syscall("landlock_create_ruleset", 0, 0, _CREATE_VERSION)
    except (OSError, KeyError):
        return 0


def restrict_self(version: int, rules: Sequence[tuple[str, int]]) -> None:
    """Restricts this process and its descendants to `rules`: (path, rights beneath it).

    Paths that do not exist are skipped. Requires no_new_privs.
    """
    known = (1 << _BY_ABI.get(version, 16)) - 1
    attributes = struct.pack("=Q", known)
    if version >= 4:
        attributes += struct.pack("=Q", 3)  # TCP bind and connect
    if version >= 6:
        attributes += struct.pack("=Q", 3)  # scopes abstract unix sockets and signals to the domain
    ruleset = linux.syscall(
        "landlock_create_ruleset", ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0
    )
    try:
        for path, rights in rules:
            _add_rule(ruleset, path, rights & known)
        linux.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _add_rule(ruleset: int, path: str, rights: int) -> None:
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
