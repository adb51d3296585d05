"""Polls the resource usage of session processes and enforces the limits that the kernel does not.

`enforcement.watchdog_limits` names them. Memory and process count of a session are sums over `/proc`: anonymous pages,
shared mappings, and memory files without a name (memfd_create). Disk space is that of the work folder and of files
that were unlinked while open.
A thread left running between cells is stopped (SIGSTOP), as it would take CPU from other sessions.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Container
from dataclasses import dataclass, field

from tools_service.sandbox.confinement import linux
from tools_service.sandbox.manager import folders
from tools_service.sandbox.protocol import enforcement
from tools_service.sandbox.protocol.isolation_config import IsolationConfig

PERIOD_S = 0.25
BURST_PERIOD_S = 0.05  # between looks at the number of tasks on the machine, where the watchdog limits processes
_CPU_PERIOD_S = 2.0
_IDLE_CPU_SHARE = (
    0.03  # of a core, between cells; low, since a spinning thread gets little more on an overloaded machine
)
_TICKS = os.sysconf("SC_CLK_TCK")
_MAPPED_BYTES = 4 << 20  # address space beyond the zygote's from which mappings are listed, which takes milliseconds


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
        return self.private_bytes + sum(size for (dev, _), size in self.unlinked.items() if dev == _memfd_device())

    @property
    def unlinked_disk_bytes(self) -> int:
        """Disk space in bytes of files without a name, which no folder contains."""
        return sum(size for (dev, _), size in self.unlinked.items() if dev != _memfd_device())


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
    uid: int | None = None  # user id of its processes if it is not that of the manager


@dataclass(frozen=True)
class Action:
    """The action on the session of `pid`: kill it for a reason, or stop its processes until its next cell."""

    pid: int
    kill_reason: str  # empty: stop it with SIGSTOP until its next cell
    pids: list[int]


class Watchdog:
    def __init__(self, config: IsolationConfig):
        self._config = config
        self._enforced = enforcement.watchdog_limits(config)
        self._reads_memory = "memory_mb" in self._enforced
        self._reads_files = enforcement.watchdog_reads_files(config)
        self._limits_processes = "processes" in self._enforced
        self.period_s = BURST_PERIOD_S if self._limits_processes else PERIOD_S  # between calls of `due`
        self._tasks_at_poll = 0  # tasks on the machine at the last poll
        self._next_poll = self._next_cpu = time.monotonic()
        self._idle_cpu_s: dict[int, float] = {}  # CPU time of idle sessions at the last poll
        self._baseline_bytes = 0  # anonymous memory that every fork inherits from the zygote
        self._baseline_mapped_bytes = 0  # its address space
        self._process_usage: dict[int, _ProcessUsage] = {}
        self._checked_at_cpu_s: dict[int, float] = {}  # CPU time of a session when its folder was last measured

    def set_baseline(self, pid: int) -> None:
        """Records the memory and the address space of the zygote, which are not charged to its forks."""
        self._baseline_bytes = _rss_bytes(pid, "Anon")
        self._baseline_mapped_bytes = _read_kb(f"/proc/{pid}/status", "VmSize:") << 10

    def due(self) -> bool:
        """Returns True when the next poll is due: after `PERIOD_S`, or at once if a session may have forked a lot.

        A fork bomb doubles in milliseconds, and each of its processes delays the poll that would find it.
        """
        if time.monotonic() >= self._next_poll:
            return True
        return self._limits_processes and _machine_tasks() > self._tasks_at_poll + self._config.limits.processes

    def poll(self, sessions: dict[int, SessionInfo]) -> list[Action]:
        """Returns the actions to take. `sessions` is keyed by the pid of each session's first process."""
        now = time.monotonic()
        self._next_poll = now + PERIOD_S
        if self._limits_processes:
            self._tasks_at_poll = _machine_tasks()
        check_limits = bool(self._enforced)
        check_cpu = now >= self._next_cpu and any(session.idle for session in sessions.values())
        if not sessions or not (check_limits or check_cpu):
            return []
        usage = self._usages({pid: session.uid for pid, session in sessions.items()})
        actions = []
        if check_limits:
            actions = [
                action for pid, session in sessions.items() if (action := self._check_session(pid, usage[pid], session))
            ]
            actions += self._check_totals(usage, {action.pid for action in actions})
            self._checked_at_cpu_s = {pid: used for pid, used in self._checked_at_cpu_s.items() if pid in sessions}
        if check_cpu:
            self._next_cpu = now + _CPU_PERIOD_S
            idle = {pid: usage[pid].cpu_s for pid, session in sessions.items() if session.idle}
            for pid, used in idle.items():
                if used - self._idle_cpu_s.get(pid, used) > _IDLE_CPU_SHARE * _CPU_PERIOD_S:
                    actions.append(Action(pid, "", usage[pid].pids))
            self._idle_cpu_s = idle
        return actions

    def _check_session(self, pid: int, usage: SessionUsage, session: SessionInfo) -> Action | None:
        reason = ""
        if self._exceeds_processes(usage):
            reason = f"more than {self._config.limits.processes} processes"
        elif self._reads_memory and self._exceeds_memory(usage, session):
            reason = "oom"
        elif "disk_mb" in self._enforced and self._checked_at_cpu_s.get(pid) != usage.cpu_s:
            reason = self._disk_violation(session.folder, usage)
            self._checked_at_cpu_s[pid] = usage.cpu_s
        return Action(pid, reason, usage.pids) if reason else None

    def _exceeds_memory(self, usage: SessionUsage, session: SessionInfo) -> bool:
        space, counted = self._config.limits.memory_mb << 20, usage.counted_bytes
        if counted > space:
            return True
        if counted + usage.shared_bytes <= space:
            return False
        with _inspecting(session.uid):
            return counted + sum(map(_pss_shmem_bytes, usage.pids)) > space

    def _check_totals(self, usage: dict[int, SessionUsage], already_ending: set[int]) -> list[Action]:
        """Kills the largest sessions until the remaining ones fit into the limits of all sessions together."""
        limits = self._config.limits
        left = {pid: used for pid, used in usage.items() if pid not in already_ending}
        actions = []
        if self._reads_memory:
            memory = {pid: used.counted_bytes for pid, used in left.items()}
            actions += [Action(pid, "oom", left.pop(pid).pids) for pid in _excess(memory, limits.all_memory_bytes)]
        if limits.all_processes and "all_processes" in self._enforced:
            reason = f"more than {limits.all_processes} processes in all sessions"
            tasks = {pid: used.tasks for pid, used in left.items()}
            actions += [Action(pid, reason, left[pid].pids) for pid in _excess(tasks, limits.all_processes)]
        return actions

    def _disk_violation(self, folder: str, usage: SessionUsage) -> str:
        limits = self._config.limits
        found = folders.measure(folder, limits.disk_mb << 20, limits.inodes)
        if found.bytes + usage.unlinked_disk_bytes > limits.disk_mb << 20:
            return f"more than {limits.disk_mb} MB of disk"
        if found.inodes > limits.inodes:
            return f"more than {limits.inodes} files and folders"
        return f"more than {folders.MAX_DEPTH} folders inside each other" if found.too_deep else ""

    def session_pids(self, pid: int, since: float = 0.0) -> list[int]:
        """Returns the processes of one session, optionally only those started since `since` (CLOCK_BOOTTIME, seconds)."""
        found = self._usages({pid: None}, pids_only=True)[pid].pids
        return [p for p in found if _start_ticks(p) >= int(since * _TICKS)] if since else found

    def _usages(self, sessions: dict[int, int | None], pids_only: bool = False) -> dict[int, SessionUsage]:
        """Sums the process list per session; `sessions` maps the pid of each first process to its user id.

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
        seen, current = self._process_usage, dict[int, _ProcessUsage]()
        for pid, row in rows.items():
            owner = _owning_session(pid, rows, sessions) if self._config.namespaces else int(row[2])
            if owner in found:
                usage = found[owner]
                usage.pids.append(pid)
                usage.tasks += int(row[17])
                usage.cpu_s += _cpu_ticks(row) / _TICKS
        if pids_only or not (self._reads_memory or self._reads_files):
            return found
        for owner, usage in found.items():
            if self._exceeds_processes(usage):
                continue  # it is killed anyway, and reading the files of a thousand processes takes seconds
            for pid in usage.pids:
                process = seen.get(pid)
                if process is None or process.ticks != _cpu_ticks(rows[pid]):
                    process = self._process(pid, rows[pid], sessions[owner])
                current[pid] = process
                usage.private_bytes += process.private_bytes
                usage.shared_bytes += process.shared_bytes
                usage.unlinked |= process.unlinked
        self._process_usage = current
        return found

    def _exceeds_processes(self, usage: SessionUsage) -> bool:
        return self._limits_processes and usage.tasks > self._config.limits.processes + 8

    def _process(self, pid: int, row: list[bytes], uid: int | None) -> _ProcessUsage:
        mapped_bytes = int(row[20]) - self._baseline_mapped_bytes
        private = max(0, _rss_bytes(pid, "Anon") - self._baseline_bytes)
        with _inspecting(uid):
            unlinked = _unlinked_files(pid)
            if "disk_mb" in self._enforced and mapped_bytes > _MAPPED_BYTES:
                unlinked = _unlinked_mappings(pid, self._config.runtime_dir) | unlinked
            return _ProcessUsage(_cpu_ticks(row), private, _rss_bytes(pid, "Shmem"), unlinked)


def _excess(sizes: dict[int, int], limit: int) -> list[int]:
    """Returns the keys of the largest sizes without which the others fit into `limit`."""
    total, found = sum(sizes.values()), []
    for key, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if total <= limit:
            break
        total -= size
        found.append(key)
    return found


def _inspecting(uid: int | None) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which /proc/PID/fd of user `uid` is readable also without CAP_SYS_PTRACE."""
    return contextlib.nullcontext() if uid is None else linux.file_system_user(uid)


@functools.cache
def _memfd_device() -> int:
    """Returns the device number of memory files, which tells them from files on a disk."""
    fd = os.memfd_create("probe")
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def _machine_tasks() -> int:
    """Returns the number of processes and threads on the machine; one read of a file of 30 bytes."""
    with open("/proc/loadavg") as file:
        return int(file.read().split()[3].partition("/")[2])


def _cpu_ticks(row: list[bytes]) -> int:
    """Returns the CPU time of a process in clock ticks, from its split `/proc/PID/stat` without pid and name."""
    return int(row[11]) + int(row[12])


def _start_ticks(pid: int) -> int:
    """Returns the start time of a process in clock ticks of CLOCK_BOOTTIME; 0 for one that has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return 0


def _owning_session(pid: int, rows: dict[int, list[bytes]], sessions: Container[int]) -> int:
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


def _unlinked_mappings(pid: int, folder: str) -> dict[tuple[int, int], int]:
    """Returns the mapped bytes of unlinked files of `folder` by (device, inode): they need no open descriptor."""
    found: dict[tuple[int, int], int] = {}
    try:
        with open(f"/proc/{pid}/maps") as file:
            lines = [line for line in file if folder in line and line.endswith(" (deleted)\n")]
    except OSError:
        return found
    for line in lines:
        addresses, _, offset, device, inode = line.split()[:5]
        start, end = (int(part, 16) for part in addresses.split("-"))
        major, minor = (int(part, 16) for part in device.split(":"))
        key = os.makedev(major, minor), int(inode)
        found[key] = max(found.get(key, 0), int(offset, 16) + end - start)
    return found
