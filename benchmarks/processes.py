"""Resources held by a running tools service: processes, memory, descriptors, cgroups, mounts, folders."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_PREFIX = "tools-sandbox-"  # of the names of the service's cgroups and runtime folder


@dataclass(frozen=True)
class Roles:
    """Process ids of one service."""

    server: int
    manager: int
    zygote: int
    others: tuple[int, ...]  # session processes, warm ones included, and their children


def roles(server: int) -> Roles:
    """Returns the processes below `server`. Raises LookupError if it has ended or runs no sandbox."""
    try:
        below = psutil.Process(server).children(recursive=True)
    except psutil.NoSuchProcess:
        raise LookupError(f"no process {server}") from None
    manager = zygote = None
    for process in sorted(below, key=lambda p: p.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if "sandbox.manager" in command:
                manager = manager or process
            # Sessions are forks of the zygote with its command line: the zygote is the oldest process.
            elif "worker.zygote" in command and (zygote is None or process.create_time() < zygote.create_time()):
                zygote = process
    if manager is None or zygote is None:
        raise LookupError(f"process {server} has no manager or no zygote below it")
    rest = {p.pid for p in below} - {manager.pid, zygote.pid}
    return Roles(server, manager.pid, zygote.pid, tuple(sorted(rest)))


def private_mb(pid: int) -> float:
    """Returns the unique set size (USS), 10⁶ bytes; 0 for a process that has ended. Needs root for other users."""
    try:
        return psutil.Process(pid).memory_full_info().uss / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def cpu_ms(pids: Iterable[int]) -> float:
    """Returns the CPU time that all threads of these processes have used, ms. Ended processes count 0.

    Unlike wall time it does not depend on the load of the machine.
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                    total += int(file.read().split()[0])
    return total / 1e6


@dataclass(frozen=True)
class Footprint:
    """Resource counts of an idle service at one time."""

    processes: int
    descriptors: int  # of server, manager and zygote
    cgroups: int
    mounts: int  # in the mount namespaces of server and zygote
    folders: int  # work folders on the machine's own disk
    server_mb: float  # private
    manager_mb: float
    zygote_mb: float
    sessions_mb: float  # private, summed


def footprint(server: int) -> Footprint:
    """Returns the current counts and sizes."""
    found = roles(server)
    fixed = (found.server, found.manager, found.zygote)
    return Footprint(
        processes=3 + len(found.others),
        descriptors=sum(psutil.Process(pid).num_fds() for pid in fixed),
        cgroups=len(cgroups(found.manager)),
        mounts=sum(_mounts(pid) for pid in (found.server, found.zygote)),
        folders=sum(len(files) + len(names) for _, names, files in _session_folders(found.manager)),
        server_mb=private_mb(found.server),
        manager_mb=private_mb(found.manager),
        zygote_mb=private_mb(found.zygote),
        sessions_mb=sum(private_mb(pid) for pid in found.others),
    )


def cgroups(manager: int) -> list[str]:
    """Returns the existing cgroups of this manager."""
    found = []
    for path, names, _ in os.walk("/sys/fs/cgroup"):
        if os.path.basename(path) == f"{_PREFIX}{manager}":
            found += [path, *(os.path.join(path, name) for name in names)]
            names.clear()
    return found


def folders(manager: int) -> list[str]:
    """Returns the existing runtime folders of this manager."""
    base = tempfile.gettempdir()
    return [os.path.join(base, name) for name in os.listdir(base) if name.startswith(f"{_PREFIX}{manager}-")]


def _session_folders(manager: int):
    for folder in folders(manager):
        yield from os.walk(os.path.join(folder, "sessions"))


def _mounts(pid: int) -> int:
    with open(f"/proc/{pid}/mountinfo") as file:
        return sum(1 for _ in file)


def growth(before: Footprint, after: Footprint, cgroups_at_most: int) -> dict[str, tuple[float, float]]:
    """Returns (before, after) of the fields that grew: any count, and memory by more than 8 MB + 5 %.

    Cgroups are created when a session slot is first used: their number is bounded, not constant.
    """
    found = {}
    for field in dataclasses.fields(Footprint):
        old, new = getattr(before, field.name), getattr(after, field.name)
        spare = 8 + 0.05 * old if field.name.endswith("_mb") else 8 if field.name == "descriptors" else 0
        if new > (cgroups_at_most if field.name == "cgroups" else old + spare):
            found[field.name] = (old, new)
    return found


def left_behind(found: Roles, within_s: float = 20.0) -> list[str]:
    """Returns the resources that still exist after a service has ended, waiting up to `within_s` for none."""
    deadline = time.monotonic() + within_s
    while True:
        left = [f"process {pid}" for pid in (found.server, found.manager, found.zygote, *found.others) if _runs(pid)]
        left += cgroups(found.manager) + folders(found.manager)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
