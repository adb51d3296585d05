"""The zygote: imports the libraries once, then forks a confined process for every session asked for.

It is started by exec with an almost empty environment, has one thread, and holds no secret: no key, no
socket but the one to the manager, nothing of any session. Every fork is a child of the manager
(CLONE_PARENT), so sessions survive the zygote and are reaped by the manager.

Requests come over a socket (SEQPACKET): ``{"slot": n, "folder": name}`` with the slot's cgroup files attached. Answer:
the same and ``"pid"``, with three descriptors: control channel, stdout file, stderr file.
"""

from __future__ import annotations

import array
import fcntl
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import traceback

from tools_service.sandbox.confinement import linux, packages, rootfs, seccomp
from tools_service.sandbox.protocol import frames
from tools_service.sandbox.protocol.isolation_config import Plan
from tools_service.sandbox.worker import interpreter, session_process

_F_ADD_SEALS, _F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1033, 1, 2, 4
_MAX_HANDLES = 16


def main() -> None:
    plan = Plan.from_json(sys.argv[1])
    manager = socket.socket(fileno=int(sys.argv[2]))
    try:
        _import_libraries(plan)
        session_process.set_environment(rootfs.WORK)
        shell = interpreter.Shell(plan.limits)
        readable = [] if plan.namespaces else packages.readable_paths(plan.packages)
        gc.collect()
        gc.freeze()
        linux.collapse_memory()
        with open("/proc/self/statm") as file:  # /proc is out of sight once the root is private
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        if plan.namespaces:
            _enter_namespaces(plan)
        if plan.tier != "insecure" and (os.geteuid() == 0 or plan.user_namespace):
            linux.drop_bounding_set()
        if plan.seccomp and plan.namespaces:
            seccomp.of_plan(plan, pid=1)
    except BaseException:
        manager.send(json.dumps({"failed": traceback.format_exc(limit=-4)[-4000:]}).encode())
        raise
    manager.send(json.dumps({"zygote": os.getpid(), "packages": packages.installed(plan.packages)}).encode())
    _serve(plan, manager, shell, readable, mapped)


class _Hidden:
    """Hides packages that sessions may not read: pandas, say, would otherwise load pyarrow and its threads."""

    def __init__(self, names: tuple[str, ...]):
        allowed = {_module_name(path) for path in packages.package_paths(names)}
        present = {_module_name(name) for folder in packages.site_folders() for name in os.listdir(folder)}
        self._names = present - allowed - {"tools_service"}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if path is None and name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _module_name(path: str) -> str:
    return os.path.basename(path).split(".")[0]


def _import_libraries(plan: Plan) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hidden = _Hidden(plan.packages)
    sys.meta_path.insert(0, hidden)
    for name in packages.PRELOADED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0]:  # installed, but broken
                raise
    if "matplotlib.pyplot" in sys.modules:
        import io

        figure = sys.modules["matplotlib.pyplot"].figure()
        figure.gca().plot([0, 1])
        figure.savefig(io.BytesIO(), format="png")  # loads fonts and renderer, which each session would do again
        sys.modules["matplotlib.pyplot"].close("all")
        _forget_fonts()
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
    if "PIL.Image" in sys.modules:
        sys.modules["PIL.Image"].init()
    # Elsewhere sessions still see those packages' folders: importing one must fail as if it were not there.
    if plan.namespaces:
        sys.meta_path.remove(hidden)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"the zygote has {threads} threads and must have one: a library ignored OMP_NUM_THREADS=1")


def _forget_fonts() -> None:
    """matplotlib drops its open fonts in every fork: where there are any, that writes to 600 KB of shared memory."""
    fonts = getattr(sys.modules["matplotlib.font_manager"], "_get_font", None)
    if clear := getattr(fonts, "cache_clear", None):
        clear()


def _enter_namespaces(plan: Plan) -> None:
    if plan.user_namespace:
        linux.enter_user_namespace()
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
    linux.sethostname("sandbox")
    scratch = os.path.join(plan.runtime_dir, "root")
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    rootfs.enter(scratch, plan.packages)


def _serve(plan: Plan, manager: socket.socket, shell: interpreter.Shell, readable: list[str], mapped: int) -> None:
    flags = linux.CLONE_PARENT
    if plan.namespaces:
        flags |= linux.CLONE_NEWPID | linux.CLONE_NEWNS | linux.CLONE_NEWIPC
    while True:
        data, handles = receive(manager)
        if not data:
            os._exit(0)
        request = json.loads(data)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        out, err = (_output_file(plan.limits.output_mb << 20) for _ in range(2))
        pid = linux.fork_with(flags)
        if pid == 0:
            session_process.become(
                plan, request["slot"], request["folder"], theirs.detach(), out, err, handles, readable, mapped,
                shell,
            )  # fmt: skip
        send(manager, request | {"pid": pid}, [ours.fileno(), out, err])
        for handle in (out, err, *handles):
            os.close(handle)
        ours.close()
        theirs.close()


def _output_file(size: int) -> int:
    """A file in memory that cannot change its size: writing past its end fails, and costs the supervisor nothing."""
    handle = os.memfd_create("output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(handle, size)
    fcntl.fcntl(handle, _F_ADD_SEALS, _F_SEAL_GROW | _F_SEAL_SHRINK | _F_SEAL_SEAL)
    return handle


def send(channel: socket.socket, message: dict, handles: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", handles))] if handles else []
    channel.sendmsg([json.dumps(message).encode()], ancillary)


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """One message and the descriptors attached to it."""
    data, ancillary, _, _ = channel.recvmsg(1 << 16, socket.CMSG_SPACE(4 * _MAX_HANDLES))
    return data, frames.descriptors(ancillary)
