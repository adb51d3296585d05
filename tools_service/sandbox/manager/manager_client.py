"""The server's client of the sandbox manager: starts it, acquires session processes and receives their exits."""

from __future__ import annotations

import array
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tools_service.sandbox.protocol import frames
from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.sandbox.protocol.manager_messages import receive_message, send_message

_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from tools_service.sandbox.manager.manager import main; main()"
)
_RESTART_BACKOFF_S, _MAX_RESTART_BACKOFF_S = 0.5, 30.0  # before the restart of a manager that failed during startup


class SandboxUnavailable(Exception):
    """No session process is available: the manager ended, gave up or did not answer in time."""


@dataclass(eq=False)
class WorkerHandle:
    """The server's handle of a confined session process: its control channel, output files and exit."""

    number: int
    pid: int
    channel: socket.socket  # same socket as reader and writer; asyncio streams cannot pass descriptors (SCM_RIGHTS)
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    out: int  # memory file of its stdout
    err: int
    ended: asyncio.Future  # cause of its exit: "oom", "exit 3", "signal 9", "manager lost"

    async def send(self, header: dict, blobs: list[bytes], fds: Sequence[int] = ()) -> None:
        """Sends a frame, with descriptors attached to its first byte. No other send may be in progress."""
        first, *rest = frames.encode(header, blobs)
        if fds:
            sent = self.channel.sendmsg([first], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            first = first[sent:]
        self.writer.writelines([first, *rest])
        await self.writer.drain()

    async def receive(self, max_payload: int) -> tuple[dict, list[bytes]]:
        """Returns the next frame. Raises FrameError, or IncompleteReadError when the process has closed the channel."""
        prefix = await self.reader.readexactly(frames.PREFIX.size)
        header_size, payload_size = frames.parse_prefix(prefix, max_payload)
        header = await self.reader.readexactly(header_size)
        return frames.decode(header, await self.reader.readexactly(payload_size))

    def close(self) -> None:
        self.writer.close()
        self.channel.close()
        for fd in (self.out, self.err):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.out = self.err = -1


class SandboxManagerClient:
    """Owns one manager process and restarts it when it ends unexpectedly."""

    def __init__(
        self,
        limits: Limits,
        packages: tuple[str, ...],
        *,
        warm: int,
        slots: int,
        tier: str,
        insecure: bool,
        use_cgroups: bool = True,
    ):
        self._options = {
            "limits": dataclasses.asdict(limits), "packages": packages, "warm": warm, "slots": slots, "tier": tier,
            "insecure": insecure, "use_cgroups": use_cgroups,
        }  # fmt: skip
        self._process: subprocess.Popen | None = None
        self._socket: socket.socket  # of the latest launch
        self._ready: asyncio.Future  # of `start`, then of every restart
        self._waiting: dict[int, asyncio.Future] = {}
        self._workers: dict[int, asyncio.Future] = {}  # by worker number: resolves to the cause of the exit
        self._pending_kills: dict[int, asyncio.Future] = {}  # by worker number: resolves when its descendants are dead
        self._last_request_id = 0
        self._closing = False
        self._failures = 0  # consecutive starts that did not become ready
        self.info: dict = {}  # the manager's `ready` message: config, summary, packages

    async def start(self) -> None:
        """Starts the manager and waits until its first session process is ready. Raises SandboxUnavailable."""
        self._ready = asyncio.get_running_loop().create_future()
        self._launch()
        await self._ready

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, root, json.dumps(self._options), str(theirs.fileno())],
            env={
                "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
                "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
                "LANG": "C.UTF-8",
            },
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours, self._on_message)

    def _on_message(self) -> None:
        while True:
            try:
                message, fds = receive_message(self._socket)
            except BlockingIOError:
                return
            except OSError:
                message = None
            if message is None:
                self._on_manager_exit("the sandbox manager ended")
                return
            self._dispatch(message, fds)

    def _dispatch(self, message: dict, fds: list[int]) -> None:
        match message["op"]:
            case "ready":
                self.info = message
                if not self._ready.done():
                    self._ready.set_result(None)
            case "granted":
                future = self._waiting.pop(message["id"], None)
                if future is None or future.done():
                    self._send({"op": "kill", "worker": message["worker"]})
                    for fd in fds:
                        os.close(fd)
                else:
                    on_exit = self._workers[message["worker"]] = asyncio.get_running_loop().create_future()
                    future.set_result((message["worker"], message["pid"], fds, on_exit))
            case "exited":
                ended = self._workers.pop(message["worker"], None)
                if ended is not None and not ended.done():
                    ended.set_result(message["cause"])
            case "descendants_killed":
                if (killed := self._pending_kills.pop(message["worker"], None)) and not killed.done():
                    killed.set_result(None)
            case "failed":
                error = SandboxUnavailable(message["message"])
                for future in [self._ready, *self._waiting.values()]:
                    if not future.done():
                        future.set_exception(error)
                self._waiting.clear()

    def _on_manager_exit(self, reason: str) -> None:
        """Ends all sessions, whose processes died with the manager, and schedules a restart."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._socket.close()
        if self._process is not None:
            self._process.wait()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(SandboxUnavailable(reason))
        self._waiting.clear()
        for ended in self._workers.values():
            if not ended.done():
                ended.set_result("manager lost")
        self._workers.clear()
        for killed in self._pending_kills.values():
            if not killed.done():
                killed.set_result(None)
        self._pending_kills.clear()
        if self._ready.done() and self._ready.exception() is None:
            self._failures = 0
        else:
            self._failures += 1
        if self._closing or not self.info:  # at the first start `start` raises and nothing is restarted
            if not self._ready.done():
                self._ready.set_exception(SandboxUnavailable(reason))
            return
        if self._ready.done():  # requests from now on wait for the next manager
            self._ready = loop.create_future()
        pause = (
            min(_MAX_RESTART_BACKOFF_S, _RESTART_BACKOFF_S * 2 ** min(self._failures - 1, 10))
            if self._failures
            else 0.0
        )
        print(f"{reason}; starting another in {pause:g} s", file=sys.stderr, flush=True)
        loop.call_later(pause, self._restart)

    def _restart(self) -> None:
        if not self._closing:
            self._launch()

    def _send(self, message: dict) -> None:
        with contextlib.suppress(OSError):
            send_message(self._socket, message)

    async def acquire(self, timeout_s: float) -> WorkerHandle:
        """Returns a new confined process. Raises SandboxUnavailable if none is granted within `timeout_s`."""
        future = asyncio.get_running_loop().create_future()
        self._last_request_id += 1
        number = self._last_request_id
        self._waiting[number] = future
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), timeout_s)
            self._send({"op": "acquire", "id": number})
            worker, pid, fds, ended = await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise SandboxUnavailable(f"no session process within {timeout_s:g} s") from None
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                worker, _, fds, _ = future.result()
                self._send({"op": "kill", "worker": worker})
                for fd in fds:
                    os.close(fd)
            raise
        finally:
            self._waiting.pop(number, None)
        channel = socket.socket(fileno=fds[0])
        channel.setblocking(False)
        duplicate = channel.dup()
        reader, writer = await asyncio.open_unix_connection(sock=channel, limit=1 << 20)
        return WorkerHandle(worker, pid, duplicate, reader, writer, fds[1], fds[2], ended)

    def interrupt(self, worker: WorkerHandle) -> None:
        self._send({"op": "interrupt", "worker": worker.number})

    async def kill_descendants(self, worker: WorkerHandle, since: float, timeout_s: float = 12.0) -> None:
        """Kills the processes that the session started since `since` (CLOCK_BOOTTIME, seconds) and waits for the reply."""
        killed = self._pending_kills[worker.number] = asyncio.get_running_loop().create_future()
        self._send({"op": "kill_descendants", "worker": worker.number, "since": since})
        await asyncio.wait({killed, worker.ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        self._pending_kills.pop(worker.number, None)

    def mark_idle(self, worker: WorkerHandle) -> None:
        """Notifies the manager that no cell runs: the watchdog may stop the session if it uses CPU."""
        self._send({"op": "mark_idle", "worker": worker.number})

    def mark_active(self, worker: WorkerHandle) -> None:
        """Notifies the manager that a cell is about to run; a stopped session continues."""
        self._send({"op": "mark_active", "worker": worker.number})

    def kill(self, worker: WorkerHandle) -> None:
        self._send({"op": "kill", "worker": worker.number})

    async def close(self) -> None:
        """Ends the manager and all sessions; kills it after 10 s."""
        self._closing = True
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        for _ in range(200):
            if self._process.poll() is not None:
                return
            await asyncio.sleep(0.05)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
