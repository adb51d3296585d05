"""Looks at what session processes use, where the kernel does not hold the limit for us.

Without cgroups the memory and the number of processes of a session are only known by adding up: pages of its
own, shared mappings, and files without a name (memfd_create, or unlinked while open). Without a mount of its
own, so is its disk space. And a thread left running between cells would take CPU from others.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from tools_service.sandbox.manager import folders
from tools_service.sandbox.protocol.isolation_config import Plan

PERIOD_S = 0.25
_CPU_PERIOD_S = 2.0
_BUSY_SHARE = 0.03  # of a core, used between cells: on a busy machine a spinning thread may get no more
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """Of one session's process tree."""

    pids: list[int] = field(default_factory=list)
    tasks: int = 0
    private_bytes: int = 0
    shared_bytes: int = 0  # resident shared mappings, counted once per process
    unnamed: dict[tuple[int, int], int] = field(default_factory=dict)  # (device, inode) of open nameless files → bytes
    cpu_s: float = 0.0

    @property
    def counted_bytes(self) -> int:
        """Memory, shared mappings left out."""
        return self.private_bytes + sum(self.unnamed.values())


@dataclass(frozen=True)
class _Seen:
    """Of one process, at a time at which it had used so much CPU: without using any it takes no memory either."""

    ticks: int
    private_bytes: int
    shared_bytes: int
    unnamed: dict[tuple[int, int], int]


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
        self._seen: dict[int, _Seen] = {}
        self._folders: dict[int, float] = {}  # CPU that a session had used when its folder was found within limits

    def zygote(self, pid: int) -> None:
        """Learns what memory sessions share with this zygote."""
        self._inherited = _resident(pid, "Anon")

    def due(self) -> bool:
        """Whether it is time for another look."""
        return time.monotonic() >= self._next

    def look(self, sessions: dict[int, Watched]) -> list[Verdict]:
        """Verdicts on sessions, by the pid of their first process."""
        now = time.monotonic()
        self._next = now + PERIOD_S
        limited = self._plan.cgroups == "none"
        cpu = now >= self._next_cpu and any(session.quiet for session in sessions.values())
        if not sessions or not (limited or cpu):
            return []
        usage = self._usages(set(sessions))
        verdicts = []
        if limited:
            verdicts = [v for pid, session in sessions.items() if (v := self._over(pid, usage[pid], session.folder))]
            verdicts += self._over_all(usage, {verdict.pid for verdict in verdicts})
            self._folders = {pid: used for pid, used in self._folders.items() if pid in sessions}
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
        space, counted = limits.memory_mb << 20, usage.counted_bytes
        reason = ""
        if counted > space or (
            counted + usage.shared_bytes > space and counted + sum(map(_shared_part, usage.pids)) > space
        ):
            reason = "oom"
        elif usage.tasks > limits.processes + 8:
            reason = f"more than {limits.processes} processes"
        elif folder and self._folders.get(pid) != usage.cpu_s:
            reason = self._disk(folder)
            self._folders[pid] = usage.cpu_s
        return Verdict(pid, reason, usage.pids) if reason else None

    def _over_all(self, usage: dict[int, Usage], ending: set[int]) -> list[Verdict]:
        """The largest sessions, as many as must end for the others to stay within the memory of all."""
        left = {pid: used for pid, used in usage.items() if pid not in ending}
        total = sum(used.counted_bytes for used in left.values())
        verdicts = []
        for pid, used in sorted(left.items(), key=lambda item: -item[1].counted_bytes):
            if total <= self._plan.limits.all_memory_bytes:
                break
            total -= used.counted_bytes
            verdicts.append(Verdict(pid, "oom", used.pids))
        return verdicts

    def _disk(self, folder: str) -> str:
        limits = self._plan.limits
        used = folders.measure(folder, limits.disk_mb << 20, limits.inodes)
        if used.bytes > limits.disk_mb << 20:
            return f"more than {limits.disk_mb} MB of disk"
        if used.inodes > limits.inodes:
            return f"more than {limits.inodes} files and folders"
        return f"more than {folders.MAX_DEPTH} folders inside each other" if used.too_deep else ""

    def members(self, pid: int, since: float = 0.0) -> list[int]:
        """The processes of one session, or those that were begun since then, in seconds of CLOCK_BOOTTIME."""
        found = self._usages({pid})[pid].pids
        return [p for p in found if _begun(p) >= int(since * _TICKS)] if since else found

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
        seen, self._seen = self._seen, {}
        for pid, row in rows.items():
            owner = _session_of(pid, rows, sessions) if self._plan.namespaces else int(row[2])
            if owner not in found:
                continue
            usage = found[owner]
            usage.pids.append(pid)
            usage.tasks += int(row[17])
            ticks = int(row[11]) + int(row[12])
            usage.cpu_s += ticks / _TICKS
            if self._plan.cgroups == "none":
                known = seen.get(pid)
                process = known if known is not None and known.ticks == ticks else self._process(pid, ticks)
                self._seen[pid] = process
                usage.private_bytes += process.private_bytes
                usage.shared_bytes += process.shared_bytes
                usage.unnamed |= process.unnamed
        return found

    def _process(self, pid: int, ticks: int) -> _Seen:
        private = max(0, _resident(pid, "Anon") - self._inherited)
        return _Seen(ticks, private, _resident(pid, "Shmem"), _unnamed(pid))


def _begun(pid: int) -> int:
    """When a process was begun, in clock ticks of CLOCK_BOOTTIME; 0 for one that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return 0


def _session_of(pid: int, rows: dict[int, list[bytes]], sessions: set[int]) -> int:
    while pid in rows and pid not in sessions:
        pid = int(rows[pid][1])
    return pid


def _resident(pid: int, kind: str) -> int:
    """Bytes of ``RssAnon`` or ``RssShmem``; 0 for a process that has ended."""
    return _kilobytes(f"/proc/{pid}/status", f"Rss{kind}:") << 10


def _shared_part(pid: int) -> int:
    """Bytes of shared mappings, each page divided by the number of processes that map it."""
    return _kilobytes(f"/proc/{pid}/smaps_rollup", "Pss_Shmem:") << 10


def _kilobytes(path: str, name: str) -> int:
    try:
        with open(path) as file:
            for line in file:
                if line.startswith(name):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def _unnamed(pid: int) -> dict[tuple[int, int], int]:
    """The open files of a process that no name leads to, by where they lie, so that each counts once.

    The two output files are among them, whose size is limited.
    """
    found: dict[tuple[int, int], int] = {}
    try:
        handles = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for handle in handles:
        try:
            status = os.stat(f"/proc/{pid}/fd/{handle}")
        except OSError:
            continue
        if status.st_nlink == 0 and status.st_mode & 0o170000 == 0o100000:
            found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found
