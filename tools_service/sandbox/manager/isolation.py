"""Probes the strongest isolation tier that works on this machine.

The tiers, strongest first: *root* (namespaces, private root, cgroups, a user id per session, Landlock, seccomp),
*userns* (the same inside a user namespace, if unprivileged users may create one), *landlock* (Landlock, seccomp and
process limits, for containers that forbid namespaces). Without any of them the service refuses to start, except
with `--insecure`.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import tempfile
from collections.abc import Callable

from tools_service.sandbox.confinement import landlock, linux, seccomp, syscalls
from tools_service.sandbox.protocol.isolation_config import TIERS, IsolationConfig

_UID_BASE = 610_000
_NAMESPACES = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWPID


class IsolationUnavailable(Exception):
    """Not even the weakest isolation tier works on this machine."""


def probe_isolation(config: IsolationConfig, best_tier: str, insecure: bool) -> IsolationConfig:
    """Returns `config` with the strongest tier that works here, at most `best_tier`.

    `config.cgroups` is the cgroup version found. Raises IsolationUnavailable, naming what is missing.
    """
    lock = landlock.abi_version() if syscalls.machine() else 0
    filtered = _succeeds_in_child(_try_filter)
    allowed = TIERS[TIERS.index(best_tier) :] if filtered else ()
    is_root = os.geteuid() == 0
    config = dataclasses.replace(config, landlock=lock, seccomp=filtered)
    if "root" in allowed and is_root and _succeeds_in_child(_try_namespaces):
        return dataclasses.replace(config, tier="root", namespaces=True, uid_base=_UID_BASE)
    config = dataclasses.replace(config, cgroups=config.cgroups if is_root else "none")
    if "userns" in allowed and _succeeds_in_child(_try_user_namespace):
        return dataclasses.replace(config, tier="userns", namespaces=True, user_namespace=True)
    if "landlock" in allowed and lock:
        own_users = is_root and _succeeds_in_child(lambda: _try_other_user(config.runtime_dir, None))
        # Where only root may enter the interpreter's folder: Landlock still bounds what the capability lets them read.
        reading = is_root and not own_users
        reading = reading and _succeeds_in_child(lambda: _try_other_user(config.runtime_dir, linux.CAP_DAC_READ_SEARCH))
        uid_base = _UID_BASE if own_users or reading else 0
        return dataclasses.replace(config, tier="landlock", uid_base=uid_base, read_capability=reading)
    if insecure:
        print("insecure: sessions are not confined on this machine", file=sys.stderr)
        return dataclasses.replace(config, tier="insecure", landlock=0, seccomp=False)
    raise IsolationUnavailable(
        f"no confinement on this machine ({platform.machine()}, uid {os.geteuid()}): seccomp filter "
        f"{'works' if filtered else 'does not work'}, Landlock ABI {lock or 'none'}, namespaces do not work; "
        "run it as root or on Linux 5.13 or newer, or accept unconfined sessions with --insecure"
    )


def _succeeds_in_child(attempt: Callable[[], None]) -> bool:
    """Runs `attempt` in a forked child, whose privileges and namespaces it may change; returns True if it succeeds."""
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _try_filter() -> None:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install_filter(
        seccomp.build_filter(own_pid_namespace=True, signals_scoped=True, files_in_flight=True, pid=os.getpid())
    )
    os.getpid()


def _try_namespaces() -> None:
    linux.unshare(_NAMESPACES)
    _mount_something()
    pid = os.fork()
    if pid == 0:
        try:
            linux.mount("proc", "/proc", "proc", 0, "subset=pid,hidepid=2")
            os.setresuid(_UID_BASE, _UID_BASE, _UID_BASE)
            os._exit(0)
        except BaseException:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise OSError("no private /proc")


def _try_user_namespace() -> None:
    linux.enter_user_namespace()
    linux.unshare(_NAMESPACES)
    _mount_something()


def _mount_something() -> None:
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", "/tmp", "tmpfs", 0, "size=64k")


def _try_other_user(runtime_dir: str, keep_capability: int | None) -> None:
    """Checks that another user id can own a folder and run this interpreter, which a user per session needs."""
    folder = tempfile.mkdtemp(dir=runtime_dir)
    try:
        os.chown(folder, _UID_BASE, _UID_BASE)
    finally:
        os.rmdir(folder)
    linux.become_user(_UID_BASE, keep_capability)
    for path in (sys.executable, os.__file__):
        open(path, "rb").close()
    if os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-I", "-S", "-c", "import json"]):
        raise OSError("another user cannot run the interpreter")
