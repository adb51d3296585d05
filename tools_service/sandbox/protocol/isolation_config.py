"""What a session may use (Limits) and how it is confined (Plan): plain data, passed between processes as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Literal

Tier = Literal["root", "userns", "plain", "insecure"]


@dataclass(frozen=True)
class Limits:
    """Per session unless said otherwise."""

    memory_mb: int = 1024  # beyond what is shared with the zygote
    disk_mb: int = 64  # private work folder
    inodes: int = 2048  # files and folders in it
    file_mb: int = 64  # one file
    processes: int = 48  # threads count as processes
    open_files: int = 128
    cpu_cores: float = 1.0  # where cgroups can say so
    cpu_seconds: int = 3600  # of one process, over the session's life
    output_mb: int = 4  # stdout, and stderr, of one cell: writing more fails
    text_kb: int = 256  # of either, returned: head and tail
    images: int = 10  # returned by one cell
    image_megapixels: float = 50.0  # one returned picture
    image_mb: int = 48  # all returned pictures of one cell
    code_kb: int = 256
    input_images: int = 64
    input_image_mb: int = 32  # one input picture
    timeout_s: float = 10.0  # wall time of a cell that names none
    max_timeout_s: float = 300.0
    grace_s: float = 1.0  # between the soft interrupt and the kill
    all_memory_mb: int = 0  # of all sessions together; 0: three quarters of the machine's
    all_cores: float = 0.0  # of all sessions together, where cgroups can say so; 0: all of them
    all_processes: int = 0  # of all sessions together, with cgroups v2; 0: no other limit than each session's

    @property
    def all_memory_bytes(self) -> int:
        if self.all_memory_mb:
            return self.all_memory_mb << 20
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4

    @property
    def reply_bytes(self) -> int:
        """Largest payload of a reply frame."""
        return (self.image_mb << 20) + 2 * (self.text_kb << 10) + 4096

    @property
    def request_bytes(self) -> int:
        """Largest payload of a request frame; pictures are not part of it."""
        return self.code_kb << 10


@dataclass(frozen=True)
class Plan:
    """How sessions are confined here. Decided once, by probing (isolation.py)."""

    tier: Tier
    namespaces: bool  # pid, mount, net, ipc, uts, with a private root
    user_namespace: bool  # the namespaces are owned by an unprivileged user
    uid_base: int  # 0: all sessions share our own user id; else session slot i runs as uid_base + i
    cgroups: Literal["v2", "v1", "none"]
    landlock: int  # ABI version, 0: none
    seccomp: bool
    limits: Limits
    packages: tuple[str, ...]  # distributions that sessions may import
    runtime_dir: str  # the manager's own folder
    max_tasks: int  # processes and threads of one user id, where sessions share theirs

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Plan:
        fields = json.loads(text)
        fields["limits"] = Limits(**fields["limits"])
        fields["packages"] = tuple(fields["packages"])
        return Plan(**fields)

    def summary(self) -> str:
        """One line for people."""
        parts = [
            "namespaces" if self.namespaces else "",
            f"cgroups {self.cgroups}" if self.cgroups != "none" else "",
            "a user per session" if self.uid_base else "",
            f"landlock {self.landlock}" if self.landlock else "",
            "seccomp" if self.seccomp else "",
        ]
        return f"{self.tier} ({', '.join(p for p in parts if p) or 'no confinement'})"
