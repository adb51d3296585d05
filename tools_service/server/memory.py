"""Available memory, of the machine and of the container (cgroup) that this process runs in."""

from __future__ import annotations

import os

_MB = 1 << 20
# (limit, usage) of cgroup v2 and v1, at the paths where a container sees its own cgroup.
_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def total_mb() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MB


def available_mb() -> int:
    """Returns the smaller of the machine's available memory and the container's remaining limit, in MiB.

    The page cache counts as available for the machine (MemAvailable) and as used for the container (memory.current).
    """
    with open("/proc/meminfo") as file:
        left = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) // 1024
    for limit, usage in _CGROUP_FILES:
        max_bytes, used = _read_int(limit), _read_int(usage)
        if max_bytes is not None and used is not None and max_bytes < total_mb() * _MB:
            left = min(left, (max_bytes - used) // _MB)
    return left


def _read_int(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):  # no such group, or "max"
        return None
