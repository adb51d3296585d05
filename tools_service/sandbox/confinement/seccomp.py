"""Assembles the seccomp filter: an allow list of system calls, with argument rules for some.

The rules cover calls that Landlock alone let through when measured: UDP, MPTCP, prlimit64, setpriority and
sched_setaffinity. Sockets cannot be created, except by socketpair(AF_UNIX), which asyncio needs.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct

from tools_service.sandbox.confinement import linux, syscalls
from tools_service.sandbox.protocol import enforcement
from tools_service.sandbox.protocol.isolation_config import IsolationConfig

# linux/bpf_common.h, linux/seccomp.h
_LD_W_ABS, _JEQ, _JGE, _JSET, _JA, _RET = 0x20, 0x15, 0x35, 0x45, 0x05, 0x06
_RET_KILL_PROCESS, _RET_ERRNO, _RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_SET_MODE_FILTER = 1
_ARGUMENTS_OFFSET = 16  # offset of the first argument in struct seccomp_data; both machines are little endian

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant
# Reads, names, timer slack, no_new_privs, transparent huge pages, VMA names.
_ALLOWED_PRCTL_OPTIONS = (2, 3, 15, 16, 21, 23, 29, 30, 38, 39, 41, 42, 0x53564D41)
_NAMESPACE_FLAGS = 0x7E020000 | linux.CLONE_PARENT


def _ret(value: int) -> Instruction:
    return (_RET, 0, 0, value)


_ALLOW = _ret(_RET_ALLOW)
_DENY = _ret(_RET_ERRNO | errno.EPERM)
_NOT_IMPLEMENTED = _ret(_RET_ERRNO | errno.ENOSYS)
_FAKE_SUCCESS = _ret(_RET_ERRNO)  # errno 0: the call has no effect and returns 0


def _load_argument(index: int) -> Instruction:
    return (_LD_W_ABS, 0, 0, _ARGUMENTS_OFFSET + 8 * index)


def _allow_if_in(index: int, values: tuple[int, ...]) -> list[Instruction]:
    """Allows the call if the argument is one of `values`, else denies it."""
    checks = [(_JEQ, len(values) - i, 0, value & 0xFFFFFFFF) for i, value in enumerate(values)]
    return [_load_argument(index), *checks, _DENY, _ALLOW]


def _deny_if_in(index: int, values: tuple[int, ...]) -> list[Instruction]:
    """Denies the call if the argument is one of `values`, else allows it."""
    checks = [(_JEQ, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_load_argument(index), *checks, _ALLOW, _DENY]


def _argument_rules(
    own_pid_namespace: bool, signals_scoped: bool, files_in_flight: bool, pid: int
) -> dict[str, list[Instruction]]:
    rules = {
        "clone": [_load_argument(0), (_JSET, 1, 0, _NAMESPACE_FLAGS), _ALLOW, _DENY],
        "clone3": [_NOT_IMPLEMENTED],  # a filter cannot read its flags, passed by pointer; libc falls back to clone
        "socketpair": _allow_if_in(0, (1,)),
        "prlimit64": _allow_if_in(0, (0,)),
        "sched_setaffinity": _allow_if_in(0, (0,)),
        "sched_setscheduler": _allow_if_in(0, (0,)),
        "sched_setparam": _allow_if_in(0, (0,)),
        "setpriority": [_load_argument(0), (_JEQ, 0, 2, 0), _load_argument(1), (_JEQ, 1, 0, 0), _DENY, _ALLOW],
        "ioctl": _deny_if_in(1, (0x5412, 0x541C)),  # TIOCSTI, TIOCLINUX: inject input into a terminal
        "prctl": _allow_if_in(0, _ALLOWED_PRCTL_OPTIONS),
        # A session could flush the page cache of the entire machine in a loop.
        "sync": [_FAKE_SUCCESS],
        "syncfs": [_FAKE_SUCCESS],
    }
    if not files_in_flight:  # a file in flight over a socket belongs to no process: the watchdog could not count it
        rules |= {"sendmsg": [_DENY], "sendmmsg": [_DENY]}
    if not own_pid_namespace:
        # Sessions are then killed by process group, so no process may leave the group.
        rules |= {"setsid": [_FAKE_SUCCESS], "setpgid": [_FAKE_SUCCESS]}
        if not signals_scoped:
            own = {name: _allow_if_in(0, (pid,)) for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")}
            rules |= own | {"tkill": [_DENY], "pidfd_open": [_DENY], "pidfd_send_signal": [_DENY]}
    return rules


def filter_for(config: IsolationConfig, pid: int) -> bytes:
    """Builds the filter for the session process `pid` under `config`."""
    return build_filter(
        own_pid_namespace=config.namespaces,
        signals_scoped=config.landlock >= 6,
        files_in_flight=not enforcement.watchdog_reads_files(config),
        pid=pid,
    )


@functools.cache  # built once by the zygote: in a pid namespace every session is pid 1 and has the same filter
def build_filter(*, own_pid_namespace: bool, signals_scoped: bool, files_in_flight: bool, pid: int) -> bytes:
    """Returns the filter as an array of struct sock_filter.

    A binary search over ranges of call numbers keeps it short: at installation the kernel emulates the filter for
    every call number, which dominates the cost.

    Raises:
        OSError: this machine has no system call table.
    """
    machine_table = syscalls.machine()
    if machine_table is None:
        raise OSError("no system call table for this machine")
    audit, table = machine_table
    rules = _argument_rules(own_pid_namespace, signals_scoped, files_in_flight, pid)
    by_number = {number: [_ALLOW] for name, number in table.items() if name not in syscalls.NOT_ALLOWED}
    by_number |= {table[name]: body for name, body in rules.items() if name in table}
    last = max(table.values())
    segments: list[tuple[int, list[Instruction]]] = []
    for number in range(last + 2):
        body = by_number.get(number, [_DENY]) if number <= last else [_NOT_IMPLEMENTED]
        if not segments or segments[-1][1] != body:
            segments.append((number, body))
    instructions = [
        (_LD_W_ABS, 0, 0, 4),
        (_JEQ, 1, 0, audit),
        _ret(_RET_KILL_PROCESS),
        (_LD_W_ABS, 0, 0, 0),
        (_JGE, 0, 1, 0x40000000),  # x32 call numbers
        _ret(_RET_KILL_PROCESS),
        *_binary_search(segments),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _binary_search(segments: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    if len(segments) == 1:
        return segments[0][1]
    middle = len(segments) // 2
    low, high = _binary_search(segments[:middle]), _binary_search(segments[middle:])
    start = segments[middle][0]
    if len(low) <= 255:
        return [(_JGE, len(low), 0, start), *low, *high]
    return [(_JGE, 0, 1, start), (_JA, 0, 0, len(low)), *low, *high]


class _SockFprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install_filter(code: bytes) -> None:
    """Installs the filter on this process; it cannot be removed. Requires no_new_privs."""
    buffer = ctypes.create_string_buffer(code, len(code))
    header = _SockFprog(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    linux.syscall("seccomp", _SET_MODE_FILTER, 0, ctypes.byref(header))
