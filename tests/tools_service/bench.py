"""A running service with a client for tests, and helpers that inspect processes."""

from __future__ import annotations

import itertools
import os
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from tools_service.client import ExecRequest, LocalService, ToolResult, ToolsClient, start_local_service

_ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count()
# Every combination of user, namespaces and cgroups that a service can meet: name → (as nobody, options).
ISOLATIONS = {
    "root, namespaces, cgroups": (False, []),
    "root, namespaces": (False, ["--no-cgroups"]),
    "root, cgroups": (False, ["--tier", "landlock"]),
    "root": (False, ["--tier", "landlock", "--no-cgroups"]),
    "nobody, namespaces": (True, []),
    "nobody": (True, ["--tier", "landlock"]),
}


class Bench:
    """A running service with a client, and the calls that tests make."""

    def __init__(self, service: LocalService, token: str | None = None):
        self.service = service
        self.client = ToolsClient(service.address, token)
        info = self.client.info()
        self.tier: str = info["tier"]
        self.enforced_by: dict[str, str] = info["enforced_by"]

    def new_session(self) -> str:
        return f"session-{next(_numbers)}"

    def run(
        self, session: str, code: str, timeout_s: float = 20.0, images: tuple[bytes, ...] = (), request_id: str = ""
    ) -> ToolResult:
        """Runs one cell and waits for its result."""
        self.client.submit([ExecRequest(request_id or f"request-{next(_numbers)}", session, code, timeout_s, images)])
        return self.results(1)[0]

    def results(self, count: int, within_s: float = 90.0) -> list[ToolResult]:
        """Waits for exactly `count` results and returns them in order of completion."""
        found: list[ToolResult] = []
        deadline = time.monotonic() + within_s
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} results after {within_s} s"
            found += self.client.poll(1.0)
        assert len(found) == count
        return found

    def close(self) -> None:
        self.client.close()
        self.service.stop()


def descendants(pid: int) -> list[int]:
    """Returns the pids of all descendants of `pid`."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            parents.setdefault(parent, []).append(int(name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def alive(pids: list[int]) -> list[int]:
    """Returns the pids that still run; zombies do not count."""
    left = []
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                left.append(pid)
        except (OSError, IndexError):
            continue
    return left


def wait_until_gone(pids: list[int], within_s: float = 20.0) -> list[int]:
    """Waits until all `pids` have ended; returns those that still run after `within_s`."""
    deadline = time.monotonic() + within_s
    while (left := alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def start_as_nobody(log_path: Path, *arguments: str) -> LocalService:
    """Starts a service as an unprivileged user that only this test process uses. Needs root."""
    base = sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix})
    paths = {sys.prefix, sys.base_prefix, base, str(_ROOT)}
    command = [sys.executable, str(Path(__file__).parent / "unprivileged.py"), ":".join(sorted(paths))]
    return start_local_service(log_path=log_path, extra_args=arguments, launcher=command)


def start_isolated(isolation: str, log_path: Path, *arguments: str) -> LocalService:
    """Starts a service with one of `ISOLATIONS`; skips the test where that needs root."""
    as_nobody, options = ISOLATIONS[isolation]
    if os.geteuid() != 0 and (as_nobody or isolation.startswith("root")):
        pytest.skip("choosing the user of the service needs root")
    if as_nobody:
        return start_as_nobody(log_path, *options, *arguments)
    return start_local_service(log_path=log_path, extra_args=[*options, *arguments])
