"""Finds the strongest confinement that works here, by trying it.

The ladder: *root* (namespaces, private root, cgroups, a user id per session, Landlock, seccomp), *userns*
(the same inside a user namespace of our own, where an unprivileged user may make one), *plain* (Landlock,
seccomp and process limits, for a container that forbids namespaces). Below that the service refuses to
start unless told ``--insecure``.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from collections.abc import Callable

from tools_service.sandbox.confinement import landlock, linux, seccomp, syscalls
from tools_service.sandbox.protocol.isolation_config import Plan

_UID_BASE = 610_000
_NAMESPACES = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWPID
TIERS = ("root", "userns", "plain")


class NotConfinable(Exception):
    """This machine offers less than the weakest tier."""


def decide(plan: Plan, best: str, insecure: bool) -> Plan:
    """``plan`` with the strongest tier filled in that works here, at most ``best``. ``plan.cgroups`` says
    what was found. Raises NotConfinable, saying what is missing."""
    lock = landlock.abi() if syscalls.machine() else 0
    filtered = _works(_try_filter)
    allowed = TIERS[TIERS.index(best) :] if filtered else ()
    is_root = os.geteuid() == 0
    plan = dataclasses.replace(plan, landlock=lock, seccomp=filtered)
    if "root" in allowed and is_root and _works(_try_namespaces):
        return dataclasses.replace(plan, tier="root", namespaces=True, uid_base=_UID_BASE)
    plan = dataclasses.replace(plan, cgroups=plan.cgroups if is_root else "none")
    if "userns" in allowed and _works(_try_user_namespace):
        return dataclasses.replace(plan, tier="userns", namespaces=True, user_namespace=True)
    if "plain" in allowed and lock:
        own_users = is_root and _works(_try_other_user)
        return dataclasses.replace(plan, tier="plain", uid_base=_UID_BASE if own_users else 0)
    if insecure:
        print("insecure: sessions are not confined on this machine", file=sys.stderr)
        return dataclasses.replace(plan, tier="insecure", landlock=0, seccomp=False)
    raise NotConfinable(
        f"no confinement on this machine ({platform.machine()}, uid {os.geteuid()}): seccomp filter "
        f"{'works' if filtered else 'does not work'}, Landlock ABI {lock or 'none'}, namespaces do not work; "
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
    seccomp.install(seccomp.program(own_pid_namespace=True, signals_scoped=True, memory_counted=True, pid=os.getpid()))
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


def _try_other_user() -> None:
    """A user id per session without namespaces: that user must be able to run this interpreter."""
    os.setgroups([])
    os.setresgid(_UID_BASE, _UID_BASE, _UID_BASE)
    os.setresuid(_UID_BASE, _UID_BASE, _UID_BASE)
    for path in (sys.executable, os.__file__):
        open(path, "rb").close()
