"""Memory, CPU and process limits of session slots through cgroups: v2, v1, or none.

Cgroups belong to slots and are reused by the next session of a slot, so their number is bounded.
They are nested in the cgroup of the service itself: limits set from outside still hold.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Literal

from tools_service.sandbox.protocol.isolation_config import Limits

_PREFIX = "tools-sandbox-"
_V1_CONTROLLERS = ("memory", "cpu")  # processes are limited per user id there
_CPU_PERIOD_US = 100_000


def _own_cgroups() -> dict[str, str]:
    """Returns the cgroup path of this process by controller name ('' for v2)."""
    groups = {}
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for name in controllers.split(","):
                groups[name] = path
    return groups


def _cgroup_mounts() -> dict[str, str]:
    """Returns the mount point by controller name ('' for v2)."""
    found: dict[str, str] = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            head, _, tail = line.partition(" - ")
            kind, _, options = tail.split()[:3]
            point = head.split()[4]
            if kind == "cgroup2":
                found.setdefault("", point)
            elif kind == "cgroup":
                for option in options.split(","):
                    found.setdefault(option, point)
    return found


class SlotCgroups:
    """The cgroups of all slots. `version` is 'none' if the kernel or our privileges do not permit any."""

    def __init__(self, limits: Limits, enabled: bool = True):
        self.limits = limits
        self.version: Literal["v2", "v1", "none"] = "none"
        self._bases: dict[str, str] = {}
        name = f"{_PREFIX}{os.getpid()}"
        attempts: list[tuple[Callable[[str], None], Literal["v2", "v1"]]] = [(self._try_v2, "v2"), (self._try_v1, "v1")]
        for attempt, version in attempts if enabled else ():
            try:
                attempt(name)
                self._prepare(-1)
                self.version = version
                break
            except OSError:
                self.remove()
                self._bases = {}
        self._slots: dict[int, int] = {}  # slot → OOM kills counted at `open_slot`

    def _try_v2(self, name: str) -> None:
        mount, own = _cgroup_mounts().get(""), _own_cgroups().get("")
        if mount is None or own is None:
            raise OSError("no cgroup v2")
        parent = mount + own.rstrip("/")
        if "memory" not in _read(f"{parent}/cgroup.controllers").split():
            raise OSError("no memory controller")
        _remove_stale(parent)
        try:
            _write(f"{parent}/cgroup.subtree_control", "+memory +pids +cpu")
        except OSError as error:
            if error.errno != errno.EBUSY or own != "/":
                raise
            # v2 permits no processes in an inner cgroup ("no internal processes"): move those of a container's root.
            _move_processes(parent, f"{parent}/tools-service")
            _write(f"{parent}/cgroup.subtree_control", "+memory +pids +cpu")
        base = self._bases[""] = f"{parent}/{name}"
        os.mkdir(base)
        _write(f"{base}/cgroup.subtree_control", "+memory +pids +cpu")
        limits = self.limits
        _write(f"{base}/memory.max", str(limits.all_memory_bytes))
        if limits.all_cores:
            _write(f"{base}/cpu.max", f"{int(limits.all_cores * _CPU_PERIOD_US)} {_CPU_PERIOD_US}")
        if limits.all_processes:
            _write(f"{base}/pids.max", str(limits.all_processes))

    def _try_v1(self, name: str) -> None:
        mounts, own = _cgroup_mounts(), _own_cgroups()
        for controller in _V1_CONTROLLERS:
            if controller not in mounts or controller not in own:
                raise OSError(f"no cgroup v1 {controller}")
            parent = mounts[controller] + own[controller].rstrip("/")
            _remove_stale(parent)
            self._bases[controller] = f"{parent}/{name}"
            os.mkdir(self._bases[controller])
        _write(f"{self._bases['memory']}/memory.limit_in_bytes", str(self.limits.all_memory_bytes))
        if self.limits.all_cores:
            _write(f"{self._bases['cpu']}/cpu.cfs_quota_us", str(int(self.limits.all_cores * _CPU_PERIOD_US)))

    def _prepare(self, slot: int) -> None:
        limits = self.limits
        # v1 rejects a quota above that of the parent cgroup.
        memory, cores = str(limits.memory_mb << 20), min(limits.cpu_cores, limits.all_cores or limits.cpu_cores)
        quota = int(cores * _CPU_PERIOD_US)
        for controller, base in self._bases.items():
            folder = f"{base}/{slot}"
            os.makedirs(folder, exist_ok=True)
            if controller == "memory":
                _write(f"{folder}/memory.limit_in_bytes", memory)
            elif controller == "cpu":
                _write(f"{folder}/cpu.cfs_quota_us", str(quota))
            else:
                _write(f"{folder}/memory.max", memory)
                _write(f"{folder}/memory.swap.max", "0", missing_ok=True)
                _write(f"{folder}/memory.oom.group", "1", missing_ok=True)
                _write(f"{folder}/pids.max", str(limits.processes))
                _write(f"{folder}/cpu.max", f"{quota} {_CPU_PERIOD_US}")

    def open_slot(self, slot: int) -> list[int]:
        """Opens the `cgroup.procs` files through which a process joins the slot's cgroups; the caller closes them."""
        if self.version == "none":
            return []
        if slot not in self._slots:
            self._prepare(slot)
        self._slots[slot] = self._oom_kills(slot)
        return [os.open(f"{base}/{slot}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for base in self._bases.values()]

    def oom_killed(self, slot: int) -> bool:
        """Returns True if the kernel's OOM killer killed a process of this slot since `open_slot`."""
        return self.version != "none" and self._oom_kills(slot) > self._slots.get(slot, 0)

    def _oom_kills(self, slot: int) -> int:
        v2 = self.version == "v2"
        base = self._bases["" if v2 else "memory"]
        text = _read(f"{base}/{slot}/{'memory.events' if v2 else 'memory.oom_control'}")
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def remove(self) -> None:
        """Removes the cgroups of this manager and of killed ones. Their processes must have ended."""
        for base in self._bases.values():
            _remove_tree(base)
            with contextlib.suppress(OSError):
                _remove_stale(os.path.dirname(base))


def _move_processes(source: str, target: str) -> None:
    """Moves every process of one cgroup to a new one, including those that start meanwhile."""
    os.makedirs(target, exist_ok=True)
    while pids := _read(f"{source}/cgroup.procs").split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _write(f"{target}/cgroup.procs", pid)


def _remove_stale(parent: str) -> None:
    """Removes the cgroups that killed services left behind."""
    for name in os.listdir(parent):
        owner = name.removeprefix(_PREFIX)
        if owner != name and owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            _remove_tree(f"{parent}/{name}")


def _remove_tree(base: str) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(base):
            if os.path.isdir(f"{base}/{name}"):
                with contextlib.suppress(OSError):
                    os.rmdir(f"{base}/{name}")
        os.rmdir(base)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, value: str, missing_ok: bool = False) -> None:
    try:
        with open(path, "w") as file:
            file.write(value)
    except FileNotFoundError:
        if not missing_ok:
            raise
