"""Looks at what session processes use, where the kernel does not hold the limit for us.

Without cgroups the memory and the number of processes of a session are only known by adding up; without a
mount of its own, so is its disk space. And a thread left running between cells would take CPU from others.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from tools_service.sandbox.plan import Plan

PERIOD_S = 0.25
_CPU_PERIOD_S = 2.0
_BUSY_SHARE = 0.1  # of a core, used between cells
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Usage:
    """Of one session's process tree."""

    pids: list[int] = field(default_factory=list)
    tasks: int = 0
    private_bytes: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Watched:
    """A session to look at."""

    quiet: bool  # between cells
    folder: str  # work folder whose size nobody else limits; empty if the kernel does


@dataclass(frozen=True)
class Verdict:
    """What is to be done with the session of ``pid``: killed for a reason, or stopped until its next cell."""

    pid: int
    kill: str
    members: list[int]


class Watch:
    def __init__(self, plan: Plan):
        self._plan = plan
        self._next = self._next_cpu = time.monotonic()
        self._cpu: dict[int, float] = {}  # at the last look, of quiet sessions
        self._inherited = 0  # bytes that every fork has from the zygote

    def zygote(self, pid: int) -> None:
        """Learns what memory sessions share with this zygote."""
        self._inherited = _anonymous_bytes(pid)

    def look(self, sessions: dict[int, Watched]) -> list[Verdict]:
        """Verdicts on sessions, by the pid of their first process. Cheap when called too often."""
        now = time.monotonic()
        limited = self._plan.cgroups == "none"
        cpu = now >= self._next_cpu and any(session.quiet for session in sessions.values())
        if now < self._next or not sessions or not (limited or cpu):
            return []
        self._next = now + PERIOD_S
        usage = self._usages(set(sessions))
        verdicts = [
            v for pid, session in sessions.items() if limited and (v := self._over(pid, usage[pid], session.folder))
        ]
        if cpu:
            self._next_cpu = now + _CPU_PERIOD_S
            quiet = {pid: usage[pid].cpu_s for pid, session in sessions.items() if session.quiet}
            for pid, used in quiet.items():
                if used - self._cpu.get(pid, used) > _BUSY_SHARE * _CPU_PERIOD_S:
                    verdicts.append(Verdict(pid, "", usage[pid].pids))
            self._cpu = quiet
        return verdicts

    def _over(self, pid: int, usage: Usage, folder: str) -> Verdict | None:
        limits = self._plan.limits
        reason = ""
        if usage.private_bytes > limits.memory_mb << 20:
            reason = "oom"
        elif usage.tasks > limits.processes + 8:
            reason = f"more than {limits.processes} processes"
        elif folder and _disk_bytes(folder) > limits.disk_mb << 20:
            reason = f"more than {limits.disk_mb} MB of disk"
        return Verdict(pid, reason, usage.pids) if reason else None

    def members(self, pid: int) -> list[int]:
        """The processes of one session."""
        return self._usages({pid})[pid].pids

    def _usages(self, sessions: set[int]) -> dict[int, Usage]:
        """Adds up the process list per session: by ancestry in pid namespaces, where orphans go to the first
        process; else by process group, which sessions cannot leave."""
        found = {pid: Usage() for pid in sessions}
        rows = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", "rb") as file:
                        rows[int(name)] = file.read().rpartition(b")")[2].split()
                except OSError:
                    continue
        for pid, row in rows.items():
            owner = _session_of(pid, rows, sessions) if self._plan.namespaces else int(row[2])
            if owner not in found:
                continue
            usage = found[owner]
            usage.pids.append(pid)
            usage.tasks += int(row[17])
            usage.cpu_s += (int(row[11]) + int(row[12])) / _TICKS
            if self._plan.cgroups == "none":
                usage.private_bytes += max(0, _anonymous_bytes(pid) - self._inherited)
        return found


def _session_of(pid: int, rows: dict[int, list[bytes]], sessions: set[int]) -> int:
    while pid in rows and pid not in sessions:
        pid = int(rows[pid][1])
    return pid


def _anonymous_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            _, resident, shared = (int(v) for v in file.read().split()[:3])
    except OSError:
        return 0
    return (resident - shared) * _PAGE


def _disk_bytes(folder: str) -> int:
    total = 0
    for path, _, files in os.walk(folder) if folder else ():
        for name in files:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except OSError:
                continue
    return total
