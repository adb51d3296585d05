"""From a fresh fork of the zygote to a confined session process, step by step, then the cell loop.

The order matters: cgroups while the descriptors are open, mounts while there are privileges, the user id
after the mounts, PR_SET_PDEATHSIG after the user id (changing it clears the signal), Landlock after the
mounts (it forbids them), and the system call filter last.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import sysconfig
import tempfile

from tools_service.sandbox.confinement import landlock, linux, packages, rootfs, seccomp
from tools_service.sandbox.protocol import frames
from tools_service.sandbox.protocol.isolation_config import Plan
from tools_service.sandbox.worker import cell_loop
from tools_service.sandbox.worker.interpreter import Shell


def become(
    plan: Plan,
    slot: int,
    name: str,
    channel: int,
    out: int,
    err: int,
    cgroup_handles: list[int],
    readable: list[str],
    mapped: int,
    shell: Shell,
) -> None:
    """Turns this fork into the process of session slot ``slot``. Never returns.

    ``shell`` runs its cells: made before the fork, most of it stays shared. ``readable`` are the paths it may read where it has no private root, ``mapped`` the bytes of address
    space that it starts with. It reports ``ready`` on its channel, or ``failed`` with the reason, and serves cells until the channel closes.
    """
    try:
        _take_descriptors(channel, out, err, cgroup_handles)
        try:
            folder = _confine(plan, slot, name, readable, mapped)
            _freshen(folder)
        except BaseException as error:
            frames.write(cell_loop.CHANNEL, {"failed": f"{type(error).__name__}: {error}"})
            raise
        frames.write(cell_loop.CHANNEL, {"ready": True})
        cell_loop.serve(shell, plan.limits)
    finally:
        os._exit(71)


def _take_descriptors(channel: int, out: int, err: int, cgroup_handles: list[int]) -> None:
    """Joins the cgroups, and keeps nothing open but stdin (empty), stdout, stderr and the control channel."""
    for handle in cgroup_handles:
        os.write(handle, b"0")
    # High copies first: the numbers wanted may be in use by one another.
    kept = [os.dup2(fd, 200 + i) for i, fd in enumerate((channel, out, err))]
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    for target, source in ((1, kept[1]), (2, kept[2]), (cell_loop.CHANNEL, kept[0])):
        os.dup2(source, target)
    os.closerange(4, 1024)
    os.set_inheritable(cell_loop.CHANNEL, False)


def _confine(plan: Plan, slot: int, name: str, readable: list[str], mapped: int) -> str:
    """Everything from signals to the system call filter; returns the work folder."""
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()
    uid = plan.uid_base + slot if plan.uid_base else os.geteuid()
    if plan.namespaces:
        rootfs.add_session(plan.limits.disk_mb, plan.limits.inodes, uid, process_list=not plan.user_namespace)
        folder = rootfs.WORK
    else:
        folder = os.path.join(plan.runtime_dir, "sessions", name)
        os.makedirs(os.path.dirname(folder), mode=0o711, exist_ok=True)
        os.mkdir(folder, 0o700)
        if plan.uid_base:
            os.chown(folder, uid, uid)
    _set_limits(plan, _address_space(plan, mapped))
    if plan.uid_base:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    elif plan.tier != "insecure":
        linux.drop_capabilities()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if plan.uid_base:  # else Landlock keeps sessions apart, and the manager must see what they hold open
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
    os.umask(0o077)
    os.chdir(folder)
    for scratch in (".tmp", ".shm"):
        os.mkdir(scratch)
    if plan.tier != "insecure":
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if plan.landlock:
        rules = [(path, landlock.READ) for path in (["/"] if plan.namespaces else readable)]
        if not plan.namespaces:  # imports list these folders
            rules += [(folder, landlock.LIST) for folder in (sysconfig.get_path("stdlib"), *packages.site_folders())]
        rules += [(path, landlock.EVERYTHING) for path in (folder, "/dev/null", "/dev/zero", "/dev/full")]
        rules += [(path, landlock.READ) for path in ("/dev/urandom", "/dev/random")]
        landlock.restrict(plan.landlock, rules)
    if plan.seccomp:
        seccomp.install(seccomp.of_plan(plan, os.getpid()))
    return folder


def _address_space(plan: Plan, mapped: int) -> int:
    """Bytes of address space, counted from what the zygote already maps.

    A cgroup counts real memory, so there the address space may be generous; without one it is the limit.
    """
    return mapped + (plan.limits.memory_mb << 20) * (2 if plan.cgroups != "none" else 1)


def _set_limits(plan: Plan, space: int) -> None:
    limits = plan.limits
    values = {
        resource.RLIMIT_AS: space,
        resource.RLIMIT_FSIZE: limits.file_mb << 20,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_MEMLOCK: 1 << 16,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 256,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NPROC: limits.processes if plan.uid_base else plan.max_tasks,
    }
    for name, value in values.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def set_environment(folder: str) -> None:
    """The environment of a session that works in ``folder``, and nothing else."""
    os.environ.clear()
    os.environ.update(
        {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": folder, "TMPDIR": f"{folder}/.tmp", "LANG": "C.UTF-8",
            "MPLBACKEND": "Agg", "MPLCONFIGDIR": f"{folder}/.tmp", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
    )  # fmt: skip


def _freshen(folder: str) -> None:
    """What a fork must not share with its siblings: random state, scratch folders, where they are its own."""
    if folder != rootfs.WORK:
        set_environment(folder)
    random.seed()
    if "numpy.random" in sys.modules:  # unlike random, it keeps its state over a fork
        # A number of one word takes a short way; without one, numpy writes to another 200 KB of shared memory.
        sys.modules["numpy.random"].seed(int.from_bytes(os.urandom(4), "big"))
    tempfile.tempdir = None
    sys.argv = [""]
    sys.path[:] = [p for p in sys.path if not p.endswith(".zip")]
    sys.path.insert(0, "")
