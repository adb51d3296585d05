"""Polls the resource usage of session processes and enforces the limits that the kernel does not.

Without cgroups, memory and process count of a session are sums over `/proc`: anonymous pages, shared mappings, and
files without a name (memfd_create, or unlinked while open). Without a private mount, disk space is measured as well.
A thread left running between cells is stopped (SIGSTOP), as it would take CPU from other sessions.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from tools_service.sandbox.manager import folders
from tools_service.sandbox.protocol.isolation_config import IsolationConfig

PERIOD_S = 0.25
_CPU_PERIOD_S = 2.0
_IDLE_CPU_SHARE = (
    0.03  # of a core, between cells; low, since a spinning thread gets little more on an overloaded machine
)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class SessionUsage:
    """Usage of one session's process tree."""

    pids: list[int] = field(default_factory=list)
    tasks: int = 0
    private_bytes: int = 0
    shared_bytes: int = 0  # resident shared mappings, counted once per process
    unlinked: dict[tuple[int, int], int] = field(default_factory=dict)  # (device, inode) of open unlinked files → bytes
    cpu_s: float = 0.0

    @property
    def counted_bytes(self) -> int:
        """Memory in bytes without shared mappings."""
        return self.private_bytes + sum(self.unlinked.values())


@dataclass(frozen=True)
class _ProcessUsage:
    """Usage of one process, cached until its CPU time (`ticks`) changes: an idle process allocates no memory."""

    ticks: int
    private_bytes: int
    shared_bytes: int
    unlinked: dict[tuple[int, int], int]


@dataclass(frozen=True)
class SessionInfo:
    """State of a session that the watchdog cannot read from `/proc`."""

    idle: bool  # between cells
    folder: str  # work folder to measure; empty if its file system is limited by the kernel


@dataclass(frozen=True)
class Action:
    """The action on the session of `pid`: kill it for a reason, or stop its processes until its next cell."""

    pid: int
    kill_reason: str  # empty: stop it with SIGSTOP until its next cell
    pids: list[int]


class Watchdog:
    def __init__(self, config: IsolationConfig):
        self._config = config
        self._next_poll = self._next_cpu = time.monotonic()
        self._idle_cpu_s: dict[int, float] = {}  # CPU time of idle sessions at the last poll
        self._baseline_bytes = 0  # anonymous memory that every fork inherits from the zygote
        self._process_usage: dict[int, _ProcessUsage] = {}
        self._checked_at_cpu_s: dict[int, float] = {}  # CPU time of a session when its folder was last measured

    def set_baseline(self, pid: int) -> None:
        """Records the anonymous memory of the zygote, which is not charged to its forks."""
        self._baseline_bytes = _rss_bytes(pid, "Anon")

    def due(self) -> bool:
        """Returns True when the next poll is due."""
        return time.monotonic() >= self._next_poll

    def poll(self, sessions: dict[int, SessionInfo]) -> list[Action]:
        """Returns the actions to take. `sessions` is keyed by the pid of each session's first process."""
        now = time.monotonic()
        self._next_poll = now + PERIOD_S
        check_limits = self._config.cgroups == "none"
        check_cpu = now >= self._next_cpu and any(session.idle for session in sessions.values())
        if not sessions or not (check_limits or check_cpu):
            return []
        usage = self._usages(set(sessions))
        actions = []
        if check_limits:
            actions = [
                action
                for pid, session in sessions.items()
                if (action := self._check_session(pid, usage[pid], session.folder))
            ]
            actions += self._check_total_memory(usage, {action.pid for action in actions})
            self._checked_at_cpu_s = {pid: used for pid, used in self._checked_at_cpu_s.items() if pid in sessions}
        if check_cpu:
            self._next_cpu = now + _CPU_PERIOD_S
            idle = {pid: usage[pid].cpu_s for pid, session in sessions.items() if session.idle}
            for pid, used in idle.items():
                if used - self._idle_cpu_s.get(pid, used) > _IDLE_CPU_SHARE * _CPU_PERIOD_S:
                    actions.append(Action(pid, "", usage[pid].pids))
            self._idle_cpu_s = idle
        return actions

    def _check_session(self, pid: int, usage: SessionUsage, folder: str) -> Action | None:
        limits = self._config.limits
        space, counted = limits.memory_mb << 20, usage.counted_bytes
        reason = ""
        if counted > space or (
            counted + usage.shared_bytes > space and counted + sum(map(_pss_shmem_bytes, usage.pids)) > space
        ):
            reason = "oom"
        elif usage.tasks > limits.processes + 8:
            reason = f"more than {limits.processes} processes"
        elif folder and self._checked_at_cpu_s.get(pid) != usage.cpu_s:
            reason = self._disk_violation(folder)
            self._checked_at_cpu_s[pid] = usage.cpu_s
        return Action(pid, reason, usage.pids) if reason else None

    def _check_total_memory(self, usage: dict[int, SessionUsage], already_ending: set[int]) -> list[Action]:
        """Kills the largest sessions until the remaining ones fit into `all_memory_mb`."""
        left = {pid: used for pid, used in usage.items() if pid not in already_ending}
        total = sum(used.counted_bytes for used in left.values())
        actions = []
        for pid, used in sorted(left.items(), key=lambda item: -item[1].counted_bytes):
            if total <= self._config.limits.all_memory_bytes:
                break
            total -= used.counted_bytes
            actions.append(Action(pid, "oom", used.pids))
        return actions

    def _disk_violation(self, folder: str) -> str:
        limits = self._config.limits
        used = folders.measure(folder, limits.disk_mb << 20, limits.inodes)
        if used.bytes > limits.disk_mb << 20:
            return f"more than {limits.disk_mb} MB of disk"
        if used.inodes > limits.inodes:
            return f"more than {limits.inodes} files and folders"
        return f"more than {folders.MAX_DEPTH} folders inside each other" if used.too_deep else ""

    def session_pids(self, pid: int, since: float = 0.0) -> list[int]:
        """Returns the processes of one session, optionally only those started since `since` (CLOCK_BOOTTIME, seconds)."""
        found = self._usages({pid})[pid].pids
        return [p for p in found if _start_ticks(p) >= int(since * _TICKS)] if since else found

    def _usages(self, sessions: set[int]) -> dict[int, SessionUsage]:
        """Sums the process list per session.

        With pid namespaces a process belongs to its ancestor among `sessions` (orphans are reparented to the first
        process of the namespace); otherwise to its process group, which sessions cannot leave.
        """
        found = {pid: SessionUsage() for pid in sessions}
        rows = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", "rb") as file:
                        rows[int(name)] = file.read().rpartition(b")")[2].split()
                except OSError:
                    continue
        seen, self._process_usage = self._process_usage, {}
        for pid, row in rows.items():
            owner = _owning_session(pid, rows, sessions) if self._config.namespaces else int(row[2])
            if owner not in found:
                continue
            usage = found[owner]
            usage.pids.append(pid)
            usage.tasks += int(row[17])
            ticks = int(row[11]) + int(row[12])
            usage.cpu_s += ticks / _TICKS
            if self._config.cgroups == "none":
                known = seen.get(pid)
                process = known if known is not None and known.ticks == ticks else self._process(pid, ticks)
                self._process_usage[pid] = process
                usage.private_bytes += process.private_bytes
                usage.shared_bytes += process.shared_bytes
                usage.unlinked |= process.unlinked
        return found

    def _process(self, pid: int, ticks: int) -> _ProcessUsage:
        private = max(0, _rss_bytes(pid, "Anon") - self._baseline_bytes)
        return _ProcessUsage(ticks, private, _rss_bytes(pid, "Shmem"), _unlinked_files(pid))


def _start_ticks(pid: int) -> int:
    """Returns the start time of a process in clock ticks of CLOCK_BOOTTIME; 0 for one that has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return 0


def _owning_session(pid: int, rows: dict[int, list[bytes]], sessions: set[int]) -> int:
    while pid in rows and pid not in sessions:
        pid = int(rows[pid][1])
    return pid


def _rss_bytes(pid: int, kind: str) -> int:
    """Returns `RssAnon` or `RssShmem` in bytes; 0 for a process that has ended."""
    return _read_kb(f"/proc/{pid}/status", f"Rss{kind}:") << 10


def _pss_shmem_bytes(pid: int) -> int:
    """Returns the proportional set size of shared mappings in bytes: each page divided by its number of users."""
    return _read_kb(f"/proc/{pid}/smaps_rollup", "Pss_Shmem:") << 10


def _read_kb(path: str, name: str) -> int:
    try:
        with open(path) as file:
            for line in file:
                if line.startswith(name):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def _unlinked_files(pid: int) -> dict[tuple[int, int], int]:
    """Returns the bytes of a process's open unlinked files by (device, inode), so that shared ones count once.

    They include the two output files, whose size is limited.
    """
    found: dict[tuple[int, int], int] = {}
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for fd in fds:
        try:
            status = os.stat(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if status.st_nlink == 0 and status.st_mode & 0o170000 == 0o100000:
            found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found
