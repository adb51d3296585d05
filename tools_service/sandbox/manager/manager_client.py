"""The server's side of the manager: starts it, asks it for session processes, hears of their ends."""

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

_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from tools_service.sandbox.manager.manager import main; main()"
)
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0  # before a manager that did not get ready is started again


class SandboxUnavailable(Exception):
    """No session process can be had: the manager is gone or gave up."""


@dataclass(eq=False)
class Worker:
    """A confined process that was handed over to the server."""

    number: int
    pid: int
    channel: socket.socket  # the same as reader and writer, for what they cannot do: pass descriptors
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    out: int  # its stdout file
    err: int
    ended: asyncio.Future  # why it ended: "oom", "exit 3", "signal 9", "manager lost"

    async def send(self, header: dict, blobs: list[bytes], handles: Sequence[int] = ()) -> None:
        """Sends a frame, and descriptors with its first byte. The channel must be idle."""
        first, *rest = frames.encode(header, blobs)
        if handles:
            sent = self.channel.sendmsg([first], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", handles))])
            first = first[sent:]
        self.writer.writelines([first, *rest])
        await self.writer.drain()

    async def receive(self, max_payload: int) -> tuple[dict, list[bytes]]:
        """The next frame. Raises FrameError, or IncompleteReadError at the end."""
        prefix = await self.reader.readexactly(frames.PREFIX.size)
        header_size, payload_size = frames.lengths(prefix, max_payload)
        header = await self.reader.readexactly(header_size)
        return frames.decode(header, await self.reader.readexactly(payload_size))

    def close(self) -> None:
        self.writer.close()
        self.channel.close()
        for handle in (self.out, self.err):
            with contextlib.suppress(OSError):
                os.close(handle)
        self.out = self.err = -1


class Host:
    """One manager process, started again when it is lost."""

    def __init__(self, limits: Limits, packages: tuple[str, ...], *, warm: int, slots: int, tier: str, insecure: bool):
        self._options = {
            "limits": dataclasses.asdict(limits), "packages": packages, "warm": warm, "slots": slots, "tier": tier,
            "insecure": insecure,
        }  # fmt: skip
        self._process: subprocess.Popen | None = None
        self._socket: socket.socket | None = None
        self._ready: asyncio.Future | None = None
        self._waiting: dict[int, asyncio.Future] = {}
        self._workers: dict[int, asyncio.Future] = {}  # by number: why it ended
        self._clearing: dict[int, asyncio.Future] = {}  # by number of the worker
        self._asked = 0
        self._closing = False
        self._failures = 0  # starts in a row that came to nothing
        self.info: dict = {}  # the manager's ready message: plan, summary, packages

    async def start(self) -> None:
        """Starts the manager and waits until it has libraries loaded. Raises SandboxUnavailable."""
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
        loop = asyncio.get_running_loop()
        if self._ready is None:
            self._ready = loop.create_future()
        loop.add_reader(ours, self._on_message)

    def _on_message(self) -> None:
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(4 * 16))
            except BlockingIOError:
                return
            except OSError:
                data, ancillary = b"", []
            if not data:
                self._lost("the sandbox manager ended")
                return
            self._handle(json.loads(data), frames.descriptors(ancillary))

    def _handle(self, message: dict, handles: list[int]) -> None:
        match message["op"]:
            case "ready":
                self.info = message
                if not self._ready.done():
                    self._ready.set_result(None)
            case "granted":
                future = self._waiting.pop(message["id"], None)
                if future is None or future.done():
                    self._send({"op": "kill", "worker": message["worker"]})
                    for handle in handles:
                        os.close(handle)
                else:
                    ended = self._workers[message["worker"]] = asyncio.get_running_loop().create_future()
                    future.set_result((message["worker"], message["pid"], handles, ended))
            case "exited":
                ended = self._workers.pop(message["worker"], None)
                if ended is not None and not ended.done():
                    ended.set_result(message["cause"])
            case "cleared":
                if (cleared := self._clearing.pop(message["worker"], None)) and not cleared.done():
                    cleared.set_result(None)
            case "failed":
                error = SandboxUnavailable(message["message"])
                for future in [self._ready, *self._waiting.values()]:
                    if not future.done():
                        future.set_exception(error)
                self._waiting.clear()

    def _lost(self, reason: str) -> None:
        """The manager is gone, and with it every session. Its sessions end; another one is started."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._socket.close()
        self._process.wait()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(SandboxUnavailable(reason))
        self._waiting.clear()
        for ended in self._workers.values():
            if not ended.done():
                ended.set_result("manager lost")
        self._workers.clear()
        for cleared in self._clearing.values():
            if not cleared.done():
                cleared.set_result(None)
        self._clearing.clear()
        if self._ready.done() and self._ready.exception() is None:
            self._failures = 0
        else:
            self._failures += 1
        if self._closing or not self.info:  # at the very first start, whoever asked for it is told
            if not self._ready.done():
                self._ready.set_exception(SandboxUnavailable(reason))
            return
        if self._ready.done():  # those who ask now wait for the next one
            self._ready = loop.create_future()
        pause = min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** min(self._failures - 1, 10)) if self._failures else 0.0
        print(f"{reason}; starting another in {pause:g} s", file=sys.stderr, flush=True)
        loop.call_later(pause, self._start_again)

    def _start_again(self) -> None:
        if not self._closing:
            self._launch()

    def _send(self, message: dict) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps(message).encode())

    async def acquire(self, timeout_s: float) -> Worker:
        """A fresh confined process. Raises SandboxUnavailable when none can be had in time."""
        future = asyncio.get_running_loop().create_future()
        self._asked += 1
        number = self._asked
        self._waiting[number] = future
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), timeout_s)
            self._send({"op": "acquire", "id": number})
            worker, pid, handles, ended = await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise SandboxUnavailable(f"no session process within {timeout_s:g} s") from None
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                worker, _, handles, _ = future.result()
                self._send({"op": "kill", "worker": worker})
                for handle in handles:
                    os.close(handle)
            raise
        finally:
            self._waiting.pop(number, None)
        channel = socket.socket(fileno=handles[0])
        channel.setblocking(False)
        spare = channel.dup()
        reader, writer = await asyncio.open_unix_connection(sock=channel, limit=1 << 20)
        return Worker(worker, pid, spare, reader, writer, handles[1], handles[2], ended)

    def interrupt(self, worker: Worker) -> None:
        self._send({"op": "interrupt", "worker": worker.number})

    async def clear(self, worker: Worker, since: float, timeout_s: float = 5.0) -> None:
        """Ends the processes that the session began since then, in seconds of CLOCK_BOOTTIME, and waits for it."""
        cleared = self._clearing[worker.number] = asyncio.get_running_loop().create_future()
        self._send({"op": "clear", "worker": worker.number, "since": since})
        await asyncio.wait({cleared, worker.ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        self._clearing.pop(worker.number, None)

    def quiet(self, worker: Worker) -> None:
        """No cell of this session has run for a while: it may be stopped if it burns CPU."""
        self._send({"op": "quiet", "worker": worker.number})

    def busy(self, worker: Worker) -> None:
        """A cell is about to run after all."""
        self._send({"op": "busy", "worker": worker.number})

    def kill(self, worker: Worker) -> None:
        self._send({"op": "kill", "worker": worker.number})

    async def close(self) -> None:
        """Ends the manager and with it every session."""
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
