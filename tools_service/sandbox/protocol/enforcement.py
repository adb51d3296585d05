"""Names, for every limit, the mechanism that enforces it under a given isolation.

Everything that enforces a limit asks here, so that no limit depends on a mechanism that is absent: the watchdog
measures exactly what no kernel mechanism bounds.
"""

from __future__ import annotations

from tools_service.sandbox.protocol.isolation_config import IsolationConfig

CGROUP, RLIMIT, TMPFS, WATCHDOG, SERVER = "cgroup", "rlimit", "tmpfs", "watchdog", "server"
SEALED = "sealed file"
NOT_ENFORCED = "not enforced"

# Limit → (name, unit) in the line printed at the start.
_SHOWN = {
    "memory_mb": ("memory", " MB"),
    "disk_mb": ("disk", " MB"),
    "inodes": ("files and folders", ""),
    "file_mb": ("one file", " MB"),
    "processes": ("processes", ""),
    "open_files": ("open files", ""),
    "cpu_cores": ("cpu", " cores"),
    "cpu_seconds": ("cpu time", " s"),
    "output_mb": ("output", " MB"),
    "all_memory_mb": ("memory of all sessions", " MB"),
    "all_cores": ("cpu of all sessions", " cores"),
    "all_processes": ("processes of all sessions", ""),
}


def limit_enforcers(config: IsolationConfig) -> dict[str, str]:
    """Returns limit → mechanism, for every field of `Limits`."""
    has_cgroups = config.cgroups != "none"
    memory = CGROUP if has_cgroups else WATCHDOG
    cpu = CGROUP if has_cgroups else NOT_ENFORCED
    disk = TMPFS if config.namespaces else WATCHDOG
    if config.cgroups == "v2":
        processes = CGROUP
    else:  # RLIMIT_NPROC counts per user id, and not at all for user id 0
        processes = RLIMIT if config.uid_base else WATCHDOG
    by_server = (
        "text_kb", "images", "image_megapixels", "image_mb", "code_kb", "input_images", "input_image_mb", "timeout_s",
        "max_timeout_s", "grace_s",
    )  # fmt: skip
    return dict.fromkeys(by_server, SERVER) | {
        "memory_mb": memory,
        "disk_mb": disk,
        "inodes": disk,
        "file_mb": RLIMIT,
        "processes": processes,
        "open_files": RLIMIT,
        "cpu_cores": cpu,
        "cpu_seconds": RLIMIT,
        "output_mb": SEALED,
        "all_memory_mb": memory,
        "all_cores": cpu,
        "all_processes": CGROUP if config.cgroups == "v2" else WATCHDOG,
    }


def watchdog_limits(config: IsolationConfig) -> frozenset[str]:
    """Returns the limits that the watchdog enforces by polling."""
    return frozenset(name for name, by in limit_enforcers(config).items() if by == WATCHDOG)


def watchdog_reads_files(config: IsolationConfig) -> bool:
    """Returns True if the watchdog counts open files without a name, for which it reads /proc/PID/fd."""
    return bool({"memory_mb", "disk_mb"} & watchdog_limits(config))


def describe_limits(config: IsolationConfig) -> str:
    """Returns one line with the limits of a session and their mechanisms; limits of all sessions only if set."""
    enforcers, parts = limit_enforcers(config), []
    for name, (title, unit) in _SHOWN.items():
        value = getattr(config.limits, name)
        if name == "all_memory_mb":
            value = config.limits.all_memory_bytes >> 20
        if value:
            parts.append(f"{title} {value:g}{unit} ({enforcers[name]})")
    return ", ".join(parts)
