"""How much memory is left: of the machine, and of the container that we are in."""

from __future__ import annotations

import os

_MB = 1 << 20
# (limit, usage) of cgroup v2 and v1, as a container sees its own.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def total_mb() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MB


def available_mb() -> int:
    """The smaller of what the machine can still give and what the container may still take. Files that the
    kernel keeps in memory count as available to the machine, as taken by the container."""
    with open("/proc/meminfo") as file:
        left = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) // 1024
    for limit, usage in _GROUPS:
        most, used = _number(limit), _number(usage)
        if most is not None and used is not None and most < total_mb() * _MB:
            left = min(left, (most - used) // _MB)
    return left


def _number(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):  # no such group, or "max"
        return None
