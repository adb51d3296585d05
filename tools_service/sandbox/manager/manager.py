"""The manager: owns the session processes. It confines, hands over, kills and reaps; it never runs cells.

One thread, standard library only. It talks to the server over a socket (SEQPACKET, JSON):

- from the server: ``{"op": "acquire", "id"}``, ``{"op": "interrupt"|"kill"|"busy"|"quiet", "worker"}``,
  ``{"op": "clear", "worker", "since"}``, which ``{"op": "cleared", "worker"}`` answers;
- to the server: ``{"op": "ready", ...}``, ``{"op": "granted", "id", "worker", "pid"}`` with the session's
  three descriptors, ``{"op": "exited", "worker", "cause"}``, ``{"op": "failed", "message"}``.

A pool of warm, confined processes hides the fork from whoever asks. When the server goes, everything
goes: processes, cgroups, folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field

from tools_service.sandbox.confinement import linux
from tools_service.sandbox.manager import cgroups, folders, isolation, watchdog
from tools_service.sandbox.protocol import frames
from tools_service.sandbox.protocol.isolation_config import Limits, Plan
from tools_service.sandbox.worker import zygote

_FOLDER = "tools-sandbox-"
_AHEAD = 4  # forks under way at once
_ROUNDS = 100  # of stopping what a cell left behind; a fork bomb needs as many as it has places, at worst
_FAILURES = 5  # in a row, after which the manager gives up
_ZYGOTE_PATIENCE_S = 20.0  # for one fork; less than callers wait for a session
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from tools_service.sandbox.worker.zygote import main; main()"


@dataclass
class Worker:
    """A session process. It is warm until it is granted."""

    number: int
    slot: int
    pid: int
    folder: str  # name of its work folder where that lies on our disk: others cannot guess it
    handles: list[int] = field(default_factory=list)  # control channel, stdout file, stderr file
    ready: bool = False
    quiet: bool = False  # between cells, as far as the server has said
    stopped: bool = False
    cause: str = ""  # why we killed it


class Manager:
    def __init__(
        self,
        server: socket.socket,
        limits: Limits,
        packages: tuple[str, ...],
        warm: int,
        slots: int,
        best: str,
        insecure: bool,
    ):
        self._server = server
        self._warm = warm
        _remove_stale_folders()
        folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-")
        os.chmod(folder, 0o711)  # sessions with their own user ids pass through to their folders
        self._groups = cgroups.Groups(limits)
        unconfined = Plan(
            tier="insecure", namespaces=False, user_namespace=False, uid_base=0, cgroups=self._groups.version, landlock=0,
            seccomp=False, limits=limits, packages=packages, runtime_dir=folder, max_tasks=2 * slots + 16 * limits.processes + 256,
        )  # fmt: skip
        try:
            self.plan = isolation.decide(unconfined, best, insecure)
        except isolation.NotConfinable:
            self._groups.remove()
            _remove(folder)
            raise
        self._watch = watchdog.Watch(self.plan)
        self._free = deque(range(slots))
        self._workers: dict[int, Worker] = {}  # by pid
        self._numbers: dict[int, int] = {}  # worker number → pid
        self._starting: deque[tuple[int, float]] = deque()  # slot, when asked for
        self._waiting: deque[int] = deque()
        self._count = 0
        self._events = selectors.DefaultSelector()
        self._zygote: subprocess.Popen | None = None
        self._zygote_socket: socket.socket | None = None
        self._zygote_ready = False
        self._failures = 0
        self._packages: dict[str, str] = {}
        self._told = False

    # Start and end

    def start(self) -> None:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the server decides when we end: by closing the channel
        self._events.register(wake_read, selectors.EVENT_READ, lambda: os.read(wake_read, 4096))
        self._events.register(self._server, selectors.EVENT_READ, self._from_server)
        self._start_zygote()

    def _start_zygote(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8", "MPLBACKEND": "Agg",
            "MPLCONFIGDIR": _font_cache(self.plan.runtime_dir), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1", "NUMEXPR_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        self._zygote = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, here, self.plan.to_json(), str(theirs.fileno())],
            env=environment, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        self._zygote_socket, self._zygote_ready = ours, False
        self._events.register(ours, selectors.EVENT_READ, self._from_zygote)

    def run(self) -> None:
        while True:
            for key, _ in self._events.select(timeout=watchdog.PERIOD_S):
                key.data()
            self._reap()
            self._look_after()
            self._check_zygote()
            self._refill()

    def close(self) -> None:
        for worker in list(self._workers.values()):
            self._kill(worker.pid)
        if self._zygote is not None:
            self._zygote.kill()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.005)
            except ChildProcessError:
                break
        self._groups.remove()
        _remove(self.plan.runtime_dir)

    # Server

    def _from_server(self) -> None:
        data = self._server.recv(1 << 16)
        if not data:
            raise EOFError
        message = json.loads(data)
        if message["op"] == "acquire":
            self._waiting.append(message["id"])
            return
        pid = self._numbers.get(message["worker"])
        if pid is None:
            return
        if message["op"] == "interrupt":
            self._signal([pid], signal.SIGINT)
        elif message["op"] == "busy":
            self._resume(self._workers[pid])
        elif message["op"] == "quiet":
            self._workers[pid].quiet = True
        elif message["op"] == "kill":
            self._kill(pid)
        elif message["op"] == "clear":
            self._clear(pid, message["since"])
            self._tell({"op": "cleared", "worker": message["worker"]})

    def _tell(self, message: dict, handles: list[int] | None = None) -> None:
        zygote.send(self._server, message, handles or [])

    # Zygote and sessions

    def _from_zygote(self) -> None:
        try:
            data, handles = zygote.receive(self._zygote_socket)
        except ConnectionError:  # it was killed with a request unread
            data, handles = b"", []
        if not data:
            self._lose_zygote()
            return
        message = json.loads(data)
        if "failed" in message:
            self._fail(f"the zygote could not start: {message['failed']}")
        elif "zygote" in message:
            self._zygote_ready = True
            self._watch.zygote(self._zygote.pid)
            self._packages = message["packages"]
        else:
            self._starting.popleft()
            self._count += 1
            worker = Worker(self._count, message["slot"], message["pid"], message["folder"], handles)
            self._workers[worker.pid] = worker
            self._numbers[worker.number] = worker.pid
            self._events.register(handles[0], selectors.EVENT_READ, lambda: self._from_worker(worker))

    def _from_worker(self, worker: Worker) -> None:
        """The first frame of a session process: it is confined, or says why it could not be."""
        self._events.unregister(worker.handles[0])
        try:
            frame = frames.read(worker.handles[0], 0)
        except frames.FrameError as error:
            frame = ({"failed": str(error)}, [])
        if frame and frame[0].get("ready") is True:
            worker.ready = True
            self._failures = 0
            if not self._told:  # not before one session process is confined: until then the plan is a hope
                self._told = True
                plan = json.loads(self.plan.to_json())
                self._tell({"op": "ready", "plan": plan, "summary": self.plan.summary(), "packages": self._packages})
            return
        reason = frame[0].get("failed") if frame else "ended while being confined"
        self._kill(worker.pid)
        self._fail(f"a session process could not be confined: {reason}")

    def _fail(self, message: str) -> None:
        """Notes a failure; gives up after a few in a row."""
        self._failures += 1
        print(message, file=sys.stderr, flush=True)
        if self._failures >= _FAILURES:
            self._tell({"op": "failed", "message": message})
            raise EOFError

    def _refill(self) -> None:
        """Hands warm processes to those who wait, and asks the zygote for more."""
        warm = deque(w for w in self._workers.values() if w.ready and w.handles)
        while self._waiting and warm:
            worker = warm.popleft()
            self._tell(
                {"op": "granted", "id": self._waiting.popleft(), "worker": worker.number, "pid": worker.pid},
                worker.handles,
            )
            for handle in worker.handles:
                os.close(handle)
            worker.handles = []
        coming = len(self._starting) + sum(1 for w in self._workers.values() if w.handles)
        wanted = self._warm + len(self._waiting)
        while self._zygote_ready and self._free and coming < wanted and len(self._starting) < _AHEAD:
            slot = self._free.popleft()
            handles = self._groups.open_slot(slot)
            try:
                zygote.send(self._zygote_socket, {"slot": slot, "folder": secrets.token_hex(12)}, handles)
            except OSError:
                self._free.append(slot)
                self._lose_zygote()
                return
            finally:
                for handle in handles:
                    os.close(handle)
            self._starting.append((slot, time.monotonic()))
            coming += 1

    def _check_zygote(self) -> None:
        if self._starting and time.monotonic() - self._starting[0][1] > _ZYGOTE_PATIENCE_S:
            self._zygote.kill()

    def _lose_zygote(self) -> None:
        """Starts another zygote. Live sessions are our own children and go on."""
        self._events.unregister(self._zygote_socket)
        self._zygote_socket.close()
        self._zygote.kill()
        self._zygote.wait()
        self._free.extend(slot for slot, _ in self._starting)
        self._starting.clear()
        self._fail("the zygote ended")
        self._start_zygote()

    # Watching

    def _look_after(self) -> None:
        """Kills sessions over a limit that nothing in the kernel holds here, and stops idle ones that burn CPU."""
        if not self._watch.due():  # with hundreds of sessions, listing them takes longer than what woke us up
            return
        granted = {
            worker.pid: watchdog.Watched(worker.quiet and not worker.stopped, self._folder(worker))
            for worker in self._workers.values()
            if not worker.handles
        }
        for verdict in self._watch.look(granted):
            worker = self._workers.get(verdict.pid)
            if worker is None:
                continue
            if verdict.kill:
                worker.cause = verdict.kill
                self._kill(worker.pid)
            else:
                worker.stopped = True
                self._signal(verdict.members, signal.SIGSTOP)

    def _folder(self, worker: Worker) -> str:
        """The session's work folder on our own disk; empty where it has a file system of its own."""
        return "" if self.plan.namespaces else os.path.join(self.plan.runtime_dir, "sessions", worker.folder)

    def _resume(self, worker: Worker) -> None:
        """A cell is about to run: the session goes on if it was stopped."""
        worker.quiet = False
        if worker.stopped:
            worker.stopped = False
            self._signal(self._watch.members(worker.pid), signal.SIGCONT)

    def _clear(self, pid: int, since: float) -> None:
        """Ends what a session began since ``since`` (seconds of CLOCK_BOOTTIME); its first process stays.

        All of it stands still before any of it dies: places that become free are not taken by more forks.
        """
        stopped: list[int] = []
        for _ in range(_ROUNDS):
            found = [p for p in self._watch.members(pid, since) if p != pid and p not in stopped]
            if not found:
                break
            self._signal(found, signal.SIGSTOP)
            stopped += found
        self._signal(stopped, signal.SIGKILL)

    def _signal(self, pids: list[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    # Ends of processes

    def _kill(self, pid: int) -> None:
        """Kills a session's whole tree: the first process of a pid namespace, or the process group."""
        kills = (os.kill,) if self.plan.namespaces else (os.kill, os.killpg)
        for kill in kills:
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if self._zygote is not None and found.si_pid == self._zygote.pid:
                self._zygote.poll()
                continue
            worker = self._workers.pop(found.si_pid, None)
            if worker is not None and not self.plan.namespaces:
                self._kill(found.si_pid)  # before its pid is free again: the rest of the group
            os.waitpid(found.si_pid, 0)
            if worker is not None:
                self._ended(worker, found)

    def _ended(self, worker: Worker, how: os.waitid_result) -> None:
        del self._numbers[worker.number]
        if worker.handles:
            with contextlib.suppress(KeyError, ValueError):
                self._events.unregister(worker.handles[0])
            for handle in worker.handles:
                os.close(handle)
        else:
            if worker.cause or self._groups.ran_out_of_memory(worker.slot):
                cause = worker.cause or "oom"
            elif how.si_code == os.CLD_EXITED:
                cause = f"exit {how.si_status}"
            else:
                cause = f"signal {how.si_status}"
            self._tell({"op": "exited", "worker": worker.number, "cause": cause})
        if folder := self._folder(worker):
            _remove(folder)
        self._free.append(worker.slot)


def _remove_stale_folders() -> None:
    """Removes the work folders of managers that were killed."""
    for name in os.listdir(tempfile.gettempdir()):
        if name.startswith(_FOLDER):
            owner = name.removeprefix(_FOLDER).split("-")[0]
            if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
                _remove(os.path.join(tempfile.gettempdir(), name))


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError):
        folders.remove(folder)


def _font_cache(fallback: str) -> str:
    """Where matplotlib's list of fonts is kept between starts: making it takes seconds."""
    folder = os.path.join(tempfile.gettempdir(), f"tools-service-fonts-{os.geteuid()}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.lstat(folder)
        if status.st_uid == os.geteuid() and status.st_mode & 0o077 == 0:
            return folder
    except OSError:
        pass
    return fallback


def main() -> None:
    options = json.loads(sys.argv[1])
    server = socket.socket(fileno=int(sys.argv[2]))
    server.set_inheritable(False)
    try:
        manager = Manager(
            server,
            Limits(**options["limits"]),
            tuple(options["packages"]),
            options["warm"],
            options["slots"],
            options["tier"],
            options["insecure"],
        )
    except isolation.NotConfinable as error:
        zygote.send(server, {"op": "failed", "message": str(error)}, [])
        return
    try:
        manager.start()
        manager.run()
    except (EOFError, ConnectionError):
        pass
    finally:
        manager.close()
