"""The system call filter: an allow list, with rules for the calls whose arguments matter.

Source of the traps: measurements in which Landlock alone let UDP, MPTCP, prlimit64, setpriority and
sched_setaffinity through. Sockets cannot be created at all; only socketpair(AF_UNIX), which asyncio needs.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct

from tools_service.sandbox.confinement import linux, syscalls
from tools_service.sandbox.protocol.isolation_config import Plan

# linux/bpf_common.h, linux/seccomp.h
_LD_W_ABS, _JEQ, _JGE, _JSET, _JA, _RET = 0x20, 0x15, 0x35, 0x45, 0x05, 0x06
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_SET_MODE_FILTER = 1
_ARGUMENTS = 16  # offset of the first argument in struct seccomp_data; the low word comes first on both machines

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant
_SPEAKABLE_PRCTL = (
    2,
    3,
    15,
    16,
    21,
    23,
    29,
    30,
    38,
    39,
    41,
    42,
    0x53564D41,
)  # reads, names, slack, no_new_privs, THP, VMA names
_NAMESPACE_FLAGS = 0x7E020000 | linux.CLONE_PARENT


def _return(value: int) -> Instruction:
    return (_RET, 0, 0, value)


_PERMIT = _return(_ALLOW)
_DENY = _return(_ERRNO | errno.EPERM)
_UNKNOWN = _return(_ERRNO | errno.ENOSYS)
_PRETEND = _return(_ERRNO)  # the call does nothing and returns 0


def _argument(index: int) -> Instruction:
    return (_LD_W_ABS, 0, 0, _ARGUMENTS + 8 * index)


def _only(index: int, values: tuple[int, ...]) -> list[Instruction]:
    """Permit when the argument is one of the values."""
    checks = [(_JEQ, len(values) - i, 0, value & 0xFFFFFFFF) for i, value in enumerate(values)]
    return [_argument(index), *checks, _DENY, _PERMIT]


def _except(index: int, values: tuple[int, ...]) -> list[Instruction]:
    checks = [(_JEQ, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_argument(index), *checks, _PERMIT, _DENY]


def _rules(
    own_pid_namespace: bool, signals_scoped: bool, memory_counted: bool, pid: int
) -> dict[str, list[Instruction]]:
    rules = {
        "clone": [_argument(0), (_JSET, 1, 0, _NAMESPACE_FLAGS), _PERMIT, _DENY],
        "clone3": [_UNKNOWN],  # its flags are behind a pointer; libc falls back to clone
        "socketpair": _only(0, (1,)),
        "prlimit64": _only(0, (0,)),
        "sched_setaffinity": _only(0, (0,)),
        "sched_setscheduler": _only(0, (0,)),
        "sched_setparam": _only(0, (0,)),
        "setpriority": [_argument(0), (_JEQ, 0, 2, 0), _argument(1), (_JEQ, 1, 0, 0), _DENY, _PERMIT],
        "ioctl": _except(1, (0x5412, 0x541C)),  # TIOCSTI, TIOCLINUX: typing into somebody's terminal
        "prctl": _only(0, _SPEAKABLE_PRCTL),
        # The whole machine would write its caches to disk, over and over.
        "sync": [_PRETEND],
        "syncfs": [_PRETEND],
    }
    if not memory_counted:  # a file in memory that is sent and not yet received is seen by nobody who adds up
        rules |= {"sendmsg": [_DENY], "sendmmsg": [_DENY]}
    if not own_pid_namespace:
        # A session's tree is then killed by process group, so nothing may leave the group.
        rules |= {"setsid": [_PRETEND], "setpgid": [_PRETEND]}
        if not signals_scoped:
            own = {name: _only(0, (pid,)) for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")}
            rules |= own | {"tkill": [_DENY], "pidfd_open": [_DENY], "pidfd_send_signal": [_DENY]}
    return rules


def of_plan(plan: Plan, pid: int) -> bytes:
    """The filter of the session process ``pid``."""
    return program(
        own_pid_namespace=plan.namespaces,
        signals_scoped=plan.landlock >= 6,
        memory_counted=plan.cgroups != "none",
        pid=pid,
    )


@functools.cache  # made once by the zygote: in a pid namespace every session has the same
def program(*, own_pid_namespace: bool, signals_scoped: bool, memory_counted: bool, pid: int) -> bytes:
    """The filter as an array of struct sock_filter.

    A binary search over ranges of numbers keeps it short: the kernel emulates the filter once per system
    call number when it is installed, and that is most of the cost of installing it.
    """
    here = syscalls.machine()
    if here is None:
        raise OSError("no system call table for this machine")
    audit, table = here
    rules = _rules(own_pid_namespace, signals_scoped, memory_counted, pid)
    by_number = {number: [_PERMIT] for name, number in table.items() if name not in syscalls.NOT_ALLOWED}
    by_number |= {table[name]: body for name, body in rules.items() if name in table}
    last = max(table.values())
    segments: list[tuple[int, list[Instruction]]] = []
    for number in range(last + 2):
        body = by_number.get(number, [_DENY]) if number <= last else [_UNKNOWN]
        if not segments or segments[-1][1] != body:
            segments.append((number, body))
    instructions = [
        (_LD_W_ABS, 0, 0, 4),
        (_JEQ, 1, 0, audit),
        _return(_KILL_PROCESS),
        (_LD_W_ABS, 0, 0, 0),
        (_JGE, 0, 1, 0x40000000),  # the x32 numbers
        _return(_KILL_PROCESS),
        *_search(segments),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _search(segments: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    if len(segments) == 1:
        return segments[0][1]
    middle = len(segments) // 2
    low, high = _search(segments[:middle]), _search(segments[middle:])
    start = segments[middle][0]
    if len(low) <= 255:
        return [(_JGE, len(low), 0, start), *low, *high]
    return [(_JGE, 0, 1, start), (_JA, 0, 0, len(low)), *low, *high]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(code: bytes) -> None:
    """Puts the filter on this process, for good. no_new_privs must be set."""
    buffer = ctypes.create_string_buffer(code, len(code))
    header = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    linux.syscall("seccomp", _SET_MODE_FILTER, 0, ctypes.byref(header))
