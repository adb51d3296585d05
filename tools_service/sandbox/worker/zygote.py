"""Imports the libraries once, then forks a confined process for every requested session.

The zygote is started by exec with an almost empty environment, has one thread, and holds no secret: no key, no
socket except the one to the manager, no session data. Every fork is a child of the manager (CLONE_PARENT), so
sessions survive the zygote and are reaped by the manager.

Requests arrive over a SEQPACKET socket: `{"slot": n, "folder": name}` with the slot's cgroup files attached. The
answer is the request plus `"pid"`, with three descriptors: control channel, stdout memfd, stderr memfd.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import resource
import signal
import socket
import sys
import traceback

from tools_service.sandbox.confinement import linux, packages, rootfs, seccomp
from tools_service.sandbox.protocol.isolation_config import IsolationConfig
from tools_service.sandbox.protocol.manager_messages import receive_message, send_message
from tools_service.sandbox.worker import fonts, session_process
from tools_service.sandbox.worker.interpreter import Interpreter

_F_ADD_SEALS, _F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1033, 1, 2, 4


def main() -> None:
    config = IsolationConfig.from_json(sys.argv[1])
    manager = socket.socket(fileno=int(sys.argv[2]))
    try:
        _import_libraries(config)
        session_process.set_environment(rootfs.WORK_FOLDER)
        interpreter = Interpreter(config.limits)
        readable_paths = [] if config.namespaces else packages.readable_paths(config.packages)
        gc.collect()
        gc.freeze()
        linux.collapse_into_huge_pages()
        with open("/proc/self/statm") as file:  # /proc is not mounted in the private root
            mapped_bytes = int(file.read().split()[0]) * resource.getpagesize()
        if config.namespaces:
            _enter_namespaces(config)
        if config.tier != "insecure" and (os.geteuid() == 0 or config.user_namespace):
            linux.drop_bounding_set(keep=(linux.CAP_DAC_READ_SEARCH,) if config.read_capability else ())
        if config.seccomp and config.namespaces:
            seccomp.filter_for(config, pid=1)
    except BaseException:
        send_message(manager, {"failed": traceback.format_exc(limit=-4)[-4000:]})
        raise
    send_message(manager, {"zygote": os.getpid(), "packages": packages.installed_versions(config.packages)})
    _serve(config, manager, interpreter, readable_paths, mapped_bytes)


class _ImportBlocker:
    """Blocks imports of packages that sessions may not read; pandas would otherwise load pyarrow and its threads."""

    def __init__(self, names: tuple[str, ...]):
        allowed = {_module_name(path) for path in packages.package_paths(names)}
        present = {_module_name(name) for folder in packages.site_packages_folders() for name in os.listdir(folder)}
        self._names = present - allowed - {"tools_service"}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if path is None and name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _module_name(path: str) -> str:
    return os.path.basename(path).split(".")[0]


def _import_libraries(config: IsolationConfig) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hidden = _ImportBlocker(config.packages)
    sys.meta_path.insert(0, hidden)
    for name in packages.PRELOADED_MODULES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0]:  # the package is installed but broken
                raise
    if "matplotlib.pyplot" in sys.modules:
        import io

        fonts.set_up_fonts(packages.readable_font_folders(config.packages))
        figure = sys.modules["matplotlib.pyplot"].figure()
        figure.gca().plot([0, 1])
        figure.savefig(io.BytesIO(), format="png")  # loads fonts and renderer once for all sessions
        sys.modules["matplotlib.pyplot"].close("all")
        _clear_font_cache()
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
    if "PIL.Image" in sys.modules:
        sys.modules["PIL.Image"].init()
    # Without a private root, sessions see the folders of blocked packages; their import must keep failing.
    if config.namespaces:
        sys.meta_path.remove(hidden)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"the zygote has {threads} threads and must have one: a library ignored OMP_NUM_THREADS=1")


def _clear_font_cache() -> None:
    """Clears matplotlib's font cache: its at-fork hook would free the fonts and unshare 600 KB in every session."""
    fonts = getattr(sys.modules["matplotlib.font_manager"], "_get_font", None)
    if clear := getattr(fonts, "cache_clear", None):
        clear()


def _enter_namespaces(config: IsolationConfig) -> None:
    if config.user_namespace:
        linux.enter_user_namespace()
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
    linux.sethostname("sandbox")
    scratch = os.path.join(config.runtime_dir, "root")
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    rootfs.enter_private_root(scratch, config.packages)


def _serve(
    config: IsolationConfig,
    manager: socket.socket,
    interpreter: Interpreter,
    readable_paths: list[str],
    mapped_bytes: int,
) -> None:
    flags = linux.CLONE_PARENT
    if config.namespaces:
        flags |= linux.CLONE_NEWPID | linux.CLONE_NEWNS | linux.CLONE_NEWIPC
    while True:
        request, fds = receive_message(manager)
        if request is None:
            os._exit(0)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        out, err = (_output_file(config.limits.output_mb << 20) for _ in range(2))
        pid = linux.fork_with_flags(flags)
        if pid == 0:
            session_process.setup_and_serve(
                config, request["slot"], request["folder"], theirs.detach(), out, err, fds, readable_paths, mapped_bytes,
                interpreter,
            )  # fmt: skip
        send_message(manager, request | {"pid": pid}, [ours.fileno(), out, err])
        for fd in (out, err, *fds):
            os.close(fd)
        ours.close()
        theirs.close()


def _output_file(size: int) -> int:
    """Creates a memfd sealed against resizing: writes past `size` bytes fail without a check by the supervisor."""
    fd = os.memfd_create("output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_GROW | _F_SEAL_SHRINK | _F_SEAL_SEAL)
    return fd
