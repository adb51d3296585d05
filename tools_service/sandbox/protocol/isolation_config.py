"""Defines a session's resource limits and its isolation, as plain data that processes exchange as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Literal

Tier = Literal["root", "userns", "landlock", "insecure"]
TIERS: tuple[Tier, ...] = ("root", "userns", "landlock")  # strongest first; insecure is not chosen by itself


@dataclass(frozen=True)
class Limits:
    """Resource limits, per session unless stated otherwise. `enforcement.py` names who enforces each."""

    memory_mb: int = 1024  # on top of the memory shared with the zygote
    disk_mb: int = 64  # size of the private work folder
    inodes: int = 2048  # files and folders in the work folder
    file_mb: int = 64  # size of one file
    processes: int = 48  # threads count as processes
    open_files: int = 128
    cpu_cores: float = 1.0  # CPU bandwidth
    cpu_seconds: int = 3600  # CPU time of one process over the session's life
    output_mb: int = 4  # bytes one cell may write to stdout, and to stderr; further writes fail
    text_kb: int = 256  # bytes returned of each stream: its head and tail
    images: int = 10  # images returned by one cell
    image_megapixels: float = 50.0  # size of one returned image
    image_mb: int = 48  # encoded size of all images returned by one cell
    code_kb: int = 256  # source of one cell
    input_images: int = 64  # images sent with one cell
    input_image_mb: int = 32  # encoded size of one input image
    timeout_s: float = 10.0  # wall time of a cell whose request sets none
    max_timeout_s: float = 300.0  # largest timeout that a request may set
    grace_s: float = 1.0  # time between the interrupt and the kill
    all_memory_mb: int = 0  # memory of all sessions together; 0: three quarters of the machine's memory
    all_cores: float = 0.0  # CPU bandwidth of all sessions together; 0: all cores
    all_processes: int = 0  # processes of all sessions together; 0: unlimited

    @property
    def all_memory_bytes(self) -> int:
        """Memory limit of all sessions together, in bytes."""
        if self.all_memory_mb:
            return self.all_memory_mb << 20
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4

    @property
    def reply_bytes(self) -> int:
        """Largest payload of a reply frame."""
        return (self.image_mb << 20) + 2 * (self.text_kb << 10) + 4096

    @property
    def request_bytes(self) -> int:
        """Largest payload of a request frame; images are passed as descriptors and do not count."""
        return self.code_kb << 10


@dataclass(frozen=True)
class IsolationConfig:
    """The confinement of sessions on this machine, determined once by probing (`manager/isolation.py`)."""

    tier: Tier
    namespaces: bool  # pid, mount, net, ipc and uts namespaces, with a private root
    user_namespace: bool  # the namespaces belong to an unprivileged user namespace
    uid_base: int  # session slot i runs as user id uid_base + i; 0: all sessions share the service's user id
    cgroups: Literal["v2", "v1", "none"]
    landlock: int  # Landlock ABI version; 0: none
    seccomp: bool
    limits: Limits
    packages: tuple[str, ...]  # distributions that sessions may import
    runtime_dir: str  # the manager's folder
    max_tasks: int  # RLIMIT_NPROC of the user id that sessions share
    read_capability: bool = False  # sessions keep CAP_DAC_READ_SEARCH: only root may enter the interpreter's folder

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> IsolationConfig:
        fields = json.loads(text)
        fields["limits"] = Limits(**fields["limits"])
        fields["packages"] = tuple(fields["packages"])
        return IsolationConfig(**fields)

    def summary(self) -> str:
        """Returns a one-line description for the log."""
        parts = [
            "namespaces" if self.namespaces else "",
            f"cgroups {self.cgroups}" if self.cgroups != "none" else "",
            "a user per session" if self.uid_base else "",
            f"landlock {self.landlock}" if self.landlock else "",
            "seccomp" if self.seccomp else "",
        ]
        return f"{self.tier} ({', '.join(p for p in parts if p) or 'no confinement'})"
