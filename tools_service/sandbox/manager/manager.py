"""The manager process: confines, hands over, kills and reaps session processes; it never runs cells.

One thread, standard library only. It talks to the server over a socket (SEQPACKET, JSON):

- from the server: `{"op": "acquire", "id"}`, `{"op": "interrupt"|"kill"|"mark_active"|"mark_idle", "worker"}`,
  `{"op": "kill_descendants", "worker", "since"}`, answered by `{"op": "descendants_killed", "worker"}` once the
  killed processes have ended;
- to the server: `{"op": "ready", ...}`, `{"op": "granted", "id", "worker", "pid"}` with the session's
  three descriptors, `{"op": "exited", "worker", "cause"}`, `{"op": "failed", "message"}`.

A pool of warm, confined processes hides the latency of the fork. When the server's end of the socket closes, the
manager kills all sessions and removes their cgroups and folders.
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
from tools_service.sandbox.manager import cgroups, descendant_kills, folders, isolation, watchdog
from tools_service.sandbox.protocol import enforcement, frames
from tools_service.sandbox.protocol.isolation_config import IsolationConfig, Limits
from tools_service.sandbox.protocol.manager_messages import receive_message, send_message

_FOLDER_PREFIX = "tools-sandbox-"
_MAX_CONCURRENT_FORKS = 4  # requests that the zygote has not answered yet
_MAX_FAILURES = 5  # consecutive failures after which the manager gives up
_FORK_TIMEOUT_S = 20.0  # after which the zygote is killed; shorter than the wait of `SandboxManagerClient.acquire`
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from tools_service.sandbox.worker.zygote import main; main()"


@dataclass
class WorkerProcess:
    """A session process. It is in the warm pool until it is granted, which closes the manager's copies of its `fds`."""

    number: int
    slot: int
    pid: int
    folder: str  # unguessable name of its work folder if that is on the host's disk (tiers without namespaces)
    fds: list[int] = field(default_factory=list)  # control channel, stdout file, stderr file
    ready: bool = False
    idle: bool = False  # between cells, as last notified by the server
    stopped: bool = False
    cause: str = ""  # why this manager killed it; empty if it did not


@dataclass(eq=False)
class _Zygote:
    """The process that forks session processes, and the socket to it."""

    process: subprocess.Popen
    channel: socket.socket
    ready: bool = False  # it loaded the libraries


class Manager:
    def __init__(
        self,
        server: socket.socket,
        limits: Limits,
        packages: tuple[str, ...],
        warm: int,
        slots: int,
        best_tier: str,
        insecure: bool,
        use_cgroups: bool,
    ):
        self._server = server
        self._warm = warm
        _remove_stale_folders()
        folder = tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-")
        os.chmod(folder, 0o711)  # search permission: sessions with their own user ids reach their folders below it
        self._cgroups = cgroups.SlotCgroups(limits, use_cgroups)
        unconfined = IsolationConfig(
            tier="insecure", namespaces=False, user_namespace=False, uid_base=0, cgroups=self._cgroups.version, landlock=0,
            seccomp=False, limits=limits, packages=packages, runtime_dir=folder, max_tasks=_max_tasks(slots, limits),
        )  # fmt: skip
        try:
            self.config = isolation.probe_isolation(unconfined, best_tier, insecure)
        except isolation.IsolationUnavailable:
            self._cgroups.remove()
            _remove(folder)
            raise
        self._watchdog = watchdog.Watchdog(self.config)
        self._descendant_kills = descendant_kills.DescendantKills(self._watchdog.session_pids)
        self._free_slots = deque(range(slots))
        self._workers: dict[int, WorkerProcess] = {}  # by pid
        self._pid_by_number: dict[int, int] = {}  # worker number → pid
        self._forking: deque[tuple[int, float]] = deque()  # (slot, time of the request to the zygote)
        self._waiting: deque[int] = deque()
        self._worker_count = 0
        self._events = selectors.DefaultSelector()
        self._zygote: _Zygote | None = None
        self._failures = 0
        self._packages: dict[str, str] = {}
        self._ready_sent = False

    # Startup and shutdown

    def start(self) -> None:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the server ends this process by closing the socket
        self._events.register(wake_read, selectors.EVENT_READ, lambda: os.read(wake_read, 4096))
        self._events.register(self._server, selectors.EVENT_READ, self._from_server)
        self._start_zygote()

    def _start_zygote(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8", "MPLBACKEND": "Agg",
            "MPLCONFIGDIR": _font_cache_dir(self.config.runtime_dir), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1", "NUMEXPR_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, here, self.config.to_json(), str(theirs.fileno())],
            env=environment, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        self._zygote = zygote = _Zygote(process, ours)
        self._events.register(ours, selectors.EVENT_READ, lambda: self._from_zygote(zygote))

    def run(self) -> None:
        while True:
            pending = self._descendant_kills.pending()
            for key, _ in self._events.select(timeout=descendant_kills.POLL_S if pending else self._watchdog.period_s):
                key.data()
            for number in self._descendant_kills.take_finished():
                self._notify({"op": "descendants_killed", "worker": number})
            self._reap()
            self._enforce_limits()
            self._kill_stuck_zygote()
            self._replenish_pool()

    def close(self) -> None:
        for worker in list(self._workers.values()):
            self._kill(worker.pid)
        if self._zygote is not None:
            self._zygote.process.kill()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.005)
            except ChildProcessError:
                break
        self._cgroups.remove()
        _remove(self.config.runtime_dir)

    # Messages from the server

    def _from_server(self) -> None:
        message, _ = receive_message(self._server)
        if message is None:
            raise EOFError
        if message["op"] == "acquire":
            self._waiting.append(message["id"])
            return
        pid = self._pid_by_number.get(message["worker"])
        if pid is None:
            return
        if message["op"] == "interrupt":
            self._signal([pid], signal.SIGINT)
        elif message["op"] == "mark_active":
            self._resume(self._workers[pid])
        elif message["op"] == "mark_idle":
            self._workers[pid].idle = True
        elif message["op"] == "kill":
            self._kill(pid)
        elif message["op"] == "kill_descendants":
            self._descendant_kills.start(message["worker"], pid, message["since"])

    def _notify(self, message: dict, fds: list[int] | None = None) -> None:
        send_message(self._server, message, fds or [])

    # Zygote and sessions

    def _from_zygote(self, zygote: _Zygote) -> None:
        try:
            message, fds = receive_message(zygote.channel)
        except ConnectionError:  # the zygote was killed with a request unread
            message = None
        if message is None:
            self._restart_zygote(zygote)
            return
        if "failed" in message:
            self._record_failure(f"the zygote could not start: {message['failed']}")
        elif "zygote" in message:
            zygote.ready = True
            self._watchdog.set_baseline(zygote.process.pid)
            self._packages = message["packages"]
        else:
            self._forking.popleft()
            self._worker_count += 1
            worker = WorkerProcess(self._worker_count, message["slot"], message["pid"], message["folder"], fds)
            self._workers[worker.pid] = worker
            self._pid_by_number[worker.number] = worker.pid
            self._events.register(fds[0], selectors.EVENT_READ, lambda: self._from_worker(worker))

    def _from_worker(self, worker: WorkerProcess) -> None:
        """Reads the first frame of a session process: `ready` once it is confined, or `failed` with the reason."""
        self._events.unregister(worker.fds[0])
        try:
            frame = frames.read(worker.fds[0], 0)
        except frames.FrameError as error:
            frame = ({"failed": str(error)}, [])
        if frame and frame[0].get("ready") is True:
            worker.ready = True
            self._failures = 0
            if not self._ready_sent:  # the probed isolation is confirmed once a session process has applied it
                self._ready_sent = True
                self._notify({"op": "ready", "packages": self._packages} | self._describe())
            return
        reason = frame[0].get("failed") if frame else "ended while being confined"
        self._kill(worker.pid)
        self._record_failure(f"a session process could not be confined: {reason}")

    def _describe(self) -> dict:
        return {
            "config": json.loads(self.config.to_json()),
            "summary": self.config.summary(),
            "limits": enforcement.describe_limits(self.config),
            "enforced_by": enforcement.limit_enforcers(self.config),
        }

    def _record_failure(self, message: str) -> None:
        """Counts consecutive failures; reports `failed` and ends after `_MAX_FAILURES`."""
        self._failures += 1
        print(message, file=sys.stderr, flush=True)
        if self._failures >= _MAX_FAILURES:
            self._notify({"op": "failed", "message": message})
            raise EOFError

    def _replenish_pool(self) -> None:
        """Grants warm processes to waiting requests and asks the zygote for new ones."""
        warm = deque(w for w in self._workers.values() if w.ready and w.fds)
        while self._waiting and warm:
            worker = warm.popleft()
            self._notify(
                {"op": "granted", "id": self._waiting.popleft(), "worker": worker.number, "pid": worker.pid},
                worker.fds,
            )
            for fd in worker.fds:
                os.close(fd)
            worker.fds = []
        pooled = len(self._forking) + sum(1 for w in self._workers.values() if w.fds)
        target = self._warm + len(self._waiting)
        zygote = self._zygote
        if zygote is None or not zygote.ready:
            return
        while self._free_slots and pooled < target and len(self._forking) < _MAX_CONCURRENT_FORKS:
            slot = self._free_slots.popleft()
            fds = self._cgroups.open_slot(slot)
            try:
                send_message(zygote.channel, {"slot": slot, "folder": secrets.token_hex(12)}, fds)
            except OSError:
                self._free_slots.append(slot)
                self._restart_zygote(zygote)
                return
            finally:
                for fd in fds:
                    os.close(fd)
            self._forking.append((slot, time.monotonic()))
            pooled += 1

    def _kill_stuck_zygote(self) -> None:
        if self._zygote is not None and self._forking and time.monotonic() - self._forking[0][1] > _FORK_TIMEOUT_S:
            self._zygote.process.kill()

    def _restart_zygote(self, zygote: _Zygote) -> None:
        """Starts another zygote. Sessions are children of this process (CLONE_PARENT) and survive it."""
        self._events.unregister(zygote.channel)
        zygote.channel.close()
        zygote.process.kill()
        zygote.process.wait()
        self._free_slots.extend(slot for slot, _ in self._forking)
        self._forking.clear()
        self._record_failure("the zygote ended")
        self._start_zygote()

    # Limits

    def _enforce_limits(self) -> None:
        """Applies the watchdog's actions: kills sessions over a limit, stops idle ones that use CPU."""
        if not self._watchdog.due():  # listing hundreds of sessions costs more than the event that woke the loop
            return
        granted = {
            worker.pid: watchdog.SessionInfo(
                worker.idle and not worker.stopped,
                self._folder(worker),
                self.config.uid_base + worker.slot if self.config.uid_base else None,
            )
            for worker in self._workers.values()
            if not worker.fds
        }
        for action in self._watchdog.poll(granted):
            worker = self._workers.get(action.pid)
            if worker is None:
                continue
            if action.kill_reason:
                worker.cause = action.kill_reason
                self._kill(worker.pid)
            else:
                worker.stopped = True
                self._signal(action.pids, signal.SIGSTOP)

    def _folder(self, worker: WorkerProcess) -> str:
        """Returns the session's work folder on the host's disk; empty if it has a private file system."""
        return "" if self.config.namespaces else os.path.join(self.config.runtime_dir, "sessions", worker.folder)

    def _resume(self, worker: WorkerProcess) -> None:
        """Continues (SIGCONT) a session that the watchdog had stopped, before its next cell."""
        worker.idle = False
        if worker.stopped:
            worker.stopped = False
            self._signal(self._watchdog.session_pids(worker.pid), signal.SIGCONT)

    def _signal(self, pids: list[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    # Exits

    def _kill(self, pid: int) -> None:
        """Kills a session's process tree: by the init process of its pid namespace, or by its process group."""
        kills = (os.kill,) if self.config.namespaces else (os.kill, os.killpg)
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
            if self._zygote is not None and found.si_pid == self._zygote.process.pid:
                self._zygote.process.poll()
                continue
            worker = self._workers.pop(found.si_pid, None)
            if worker is not None and not self.config.namespaces:
                self._kill(found.si_pid)  # kills the process group before waitpid frees its id for reuse
            os.waitpid(found.si_pid, 0)
            if worker is not None:
                self._on_worker_exit(worker, found)

    def _on_worker_exit(self, worker: WorkerProcess, how: os.waitid_result) -> None:
        del self._pid_by_number[worker.number]
        if worker.fds:
            with contextlib.suppress(KeyError, ValueError):
                self._events.unregister(worker.fds[0])
            for fd in worker.fds:
                os.close(fd)
        else:
            if worker.cause or self._cgroups.oom_killed(worker.slot):
                cause = worker.cause or "oom"
            elif how.si_code == os.CLD_EXITED:
                cause = f"exit {how.si_status}"
            else:
                cause = f"signal {how.si_status}"
            self._notify({"op": "exited", "worker": worker.number, "cause": cause})
        if folder := self._folder(worker):
            _remove(folder)
        self._free_slots.append(worker.slot)


def _max_tasks(slots: int, limits: Limits) -> int:
    """Returns RLIMIT_NPROC of a user id that all sessions share: the size that a fork bomb reaches before it is found.

    Every session has one process; as many as the machine can run at once may have all of theirs. The rest is for the
    threads of the service. A higher ceiling is no use: a thousand forks of one process take minutes to exit.
    """
    return slots + limits.processes * max(8, 2 * (os.cpu_count() or 1)) + 128


def _remove_stale_folders() -> None:
    """Removes the work folders that killed managers left behind."""
    for name in os.listdir(tempfile.gettempdir()):
        if name.startswith(_FOLDER_PREFIX):
            owner = name.removeprefix(_FOLDER_PREFIX).split("-")[0]
            if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
                _remove(os.path.join(tempfile.gettempdir(), name))


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError):
        folders.remove(folder)


def _font_cache_dir(fallback: str) -> str:
    """Returns the folder of matplotlib's font cache, which is kept between starts: building it takes seconds."""
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
            options["use_cgroups"],
        )
    except isolation.IsolationUnavailable as error:
        send_message(server, {"op": "failed", "message": str(error)})
        return
    try:
        manager.start()
        manager.run()
    except (EOFError, ConnectionError):
        pass
    finally:
        manager.close()
