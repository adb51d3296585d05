"""Finds the strongest confinement that works here, by trying it.

The ladder: *root* (namespaces, private root, cgroups, a user id per session, Landlock, seccomp), *userns*
(the same inside a user namespace of our own, where an unprivileged user may make one), *plain* (Landlock,
seccomp and process limits, for a container that forbids namespaces). Below that the service refuses to
start unless told ``--insecure``.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable

from tools_service.sandbox import landlock, linux, seccomp, syscalls
from tools_service.sandbox.cgroups import Groups
from tools_service.sandbox.plan import Limits, Plan

_UID_BASE = 610_000
_NAMESPACES = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWPID
TIERS = ("root", "userns", "plain")


class NotConfinable(Exception):
    """This machine offers less than the weakest tier."""


def decide(limits: Limits, packages: tuple[str, ...], runtime_dir: str, groups: Groups, best: str, insecure: bool) -> Plan:
    """The plan for this machine, at most ``best``. Raises NotConfinable, saying what is missing."""
    lock = landlock.abi() if syscalls.machine() else 0
    filtered = _works(_try_filter)

    def plan(tier: str, **fields: object) -> Plan:
        defaults = {
            "namespaces": False, "user_namespace": False, "uid_base": 0, "cgroups": "none", "landlock": lock, "seccomp": filtered,
        }  # fmt: skip
        return Plan(tier=tier, limits=limits, packages=packages, runtime_dir=runtime_dir, **(defaults | fields))

    allowed = TIERS[TIERS.index(best) :]
    if filtered and "root" in allowed and os.geteuid() == 0 and _works(_try_namespaces):
        return plan("root", namespaces=True, uid_base=_UID_BASE, cgroups=groups.version)
    if filtered and lock and "plain" in allowed:
        return plan("plain")
    if insecure:
        print("insecure: sessions are not confined on this machine", file=sys.stderr)
        return plan("insecure", landlock=0, seccomp=False)
    raise NotConfinable(
        f"no confinement on this machine ({platform.machine()}, uid {os.geteuid()}): seccomp filter "
        f"{'works' if filtered else 'does not work'}, Landlock ABI {lock or 'none'}, namespaces need root; "
        "run it as root or on Linux 5.13 or newer, or accept unconfined sessions with --insecure"
    )


def _works(attempt: Callable[[], None]) -> bool:
    """Tries something in a child process, so that it leaves no trace here."""
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
    seccomp.install(seccomp.program(own_pid_namespace=True, signals_scoped=True, pid=os.getpid()))
    os.getpid()


def _try_namespaces() -> None:
    linux.unshare(_NAMESPACES)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", "/tmp", "tmpfs", 0, "size=64k")
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
