"""Turns a fresh fork of the zygote into a confined session process, then runs the cell loop.

The order of the steps matters: join cgroups while their descriptors are open; mount while privileged; change the
user id after the mounts; set PR_SET_PDEATHSIG after the user id (changing credentials clears it); apply Landlock
after the mounts (it forbids mounting); install the seccomp filter last.
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
from tools_service.sandbox.protocol import enforcement, frames
from tools_service.sandbox.protocol.isolation_config import IsolationConfig
from tools_service.sandbox.worker import cell_loop
from tools_service.sandbox.worker.interpreter import Interpreter


def setup_and_serve(
    config: IsolationConfig,
    slot: int,
    name: str,
    channel: int,
    out: int,
    err: int,
    cgroup_fds: list[int],
    readable_paths: list[str],
    mapped_bytes: int,
    interpreter: Interpreter,
) -> None:
    """Confines this fork as the process of session slot `slot` and serves cells. Never returns.

    `interpreter` is created before the fork, so that its memory stays shared (copy-on-write). `readable_paths` are
    the paths that the session may read if it has no private root; `mapped_bytes` is the address space inherited
    from the zygote. Reports `ready` on the control channel, or `failed` with the reason, and serves cells until the
    channel closes.
    """
    try:
        _install_fds(channel, out, err, cgroup_fds)
        try:
            folder = _apply_confinement(config, slot, name, readable_paths, mapped_bytes)
            _reset_inherited_state(folder)
        except BaseException as error:
            frames.write(cell_loop.CHANNEL_FD, {"failed": f"{type(error).__name__}: {error}"})
            raise
        frames.write(cell_loop.CHANNEL_FD, {"ready": True})
        cell_loop.serve_cells(interpreter, config.limits)
    finally:
        os._exit(71)


def _install_fds(channel: int, out: int, err: int, cgroup_fds: list[int]) -> None:
    """Joins the cgroups, then closes every descriptor except stdin (empty), stdout, stderr and the control channel."""
    for fd in cgroup_fds:
        os.write(fd, b"0")
    # Duplicates to high numbers first: a target number may be the source of another descriptor.
    kept = [os.dup2(fd, 200 + i) for i, fd in enumerate((channel, out, err))]
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    for target, source in ((1, kept[1]), (2, kept[2]), (cell_loop.CHANNEL_FD, kept[0])):
        os.dup2(source, target)
    os.closerange(4, 1024)
    os.set_inheritable(cell_loop.CHANNEL_FD, False)


def _apply_confinement(
    config: IsolationConfig, slot: int, name: str, readable_paths: list[str], mapped_bytes: int
) -> str:
    """Applies every restriction, from signal handlers to the seccomp filter; returns the work folder."""
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()
    uid = config.uid_base + slot if config.uid_base else os.geteuid()
    if config.namespaces:
        rootfs.mount_session_folders(
            config.limits.disk_mb, config.limits.inodes, uid, process_list=not config.user_namespace
        )
        folder = rootfs.WORK_FOLDER
    else:
        folder = os.path.join(config.runtime_dir, "sessions", name)
        os.makedirs(os.path.dirname(folder), mode=0o711, exist_ok=True)
        os.mkdir(folder, 0o700)
        if config.uid_base:
            os.chown(folder, uid, uid)
    _set_limits(config, _address_space_bytes(config, mapped_bytes))
    if config.uid_base:
        linux.become_user(uid, linux.CAP_DAC_READ_SEARCH if config.read_capability else None)
    elif config.tier != "insecure":
        linux.drop_capabilities()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    # A process that is not dumpable hides /proc/PID/fd, in which the watchdog counts open files without a name.
    if config.uid_base:
        linux.prctl(linux.PR_SET_DUMPABLE, 1 if enforcement.watchdog_reads_files(config) else 0)
    os.umask(0o077)
    os.chdir(folder)
    for scratch in (".tmp", ".shm"):
        os.mkdir(scratch)
    if config.tier != "insecure":
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if config.landlock:
        rules = [(path, landlock.READ_AND_EXECUTE) for path in (["/"] if config.namespaces else readable_paths)]
        if not config.namespaces:  # the import system lists these folders
            rules += [
                (folder, landlock.LIST_FOLDER)
                for folder in (sysconfig.get_path("stdlib"), *packages.site_packages_folders())
            ]
        rules += [(path, landlock.ALL_RIGHTS) for path in (folder, "/dev/null", "/dev/zero", "/dev/full")]
        rules += [(path, landlock.READ_AND_EXECUTE) for path in ("/dev/urandom", "/dev/random")]
        landlock.restrict_self(config.landlock, rules)
    if config.seccomp:
        seccomp.install_filter(seccomp.filter_for(config, os.getpid()))
    return folder


def _address_space_bytes(config: IsolationConfig, mapped_bytes: int) -> int:
    """Returns RLIMIT_AS in bytes, on top of the `mapped_bytes` inherited from the zygote.

    With cgroups, which limit resident memory, the address space may be twice as large; without, it is the limit.
    """
    return mapped_bytes + (config.limits.memory_mb << 20) * (2 if config.cgroups != "none" else 1)


def _set_limits(config: IsolationConfig, space: int) -> None:
    limits = config.limits
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
        resource.RLIMIT_NPROC: limits.processes if config.uid_base else config.max_tasks,
    }
    for name, value in values.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def set_environment(folder: str) -> None:
    """Replaces the environment by that of a session whose work folder is `folder`."""
    os.environ.clear()
    os.environ.update(
        {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": folder, "TMPDIR": f"{folder}/.tmp", "LANG": "C.UTF-8",
            "MPLBACKEND": "Agg", "MPLCONFIGDIR": f"{folder}/.tmp", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
    )  # fmt: skip


def _reset_inherited_state(folder: str) -> None:
    """Resets the state that a fork must not share with its siblings: random seeds, scratch folders, import path."""
    if folder != rootfs.WORK_FOLDER:
        set_environment(folder)
    random.seed()
    if "numpy.random" in sys.modules:  # unlike `random`, numpy keeps its state across a fork
        # A 32-bit seed is cheap; without one numpy builds a SeedSequence and touches 200 KB more shared memory.
        sys.modules["numpy.random"].seed(int.from_bytes(os.urandom(4), "big"))
    tempfile.tempdir = None
    sys.argv = [""]
    sys.path[:] = [p for p in sys.path if not p.endswith(".zip")]
    sys.path.insert(0, "")
