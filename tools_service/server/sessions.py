"""Sessions: one confined process each, cells in order, time-outs, and what happens when a process ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from tools_service.proto import tools_pb2 as pb
from tools_service.sandbox.manager.manager_client import Host, SandboxUnavailable, Worker
from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.sandbox.worker.cell_loop import read_output
from tools_service.server import cell_rpc, memory
from tools_service.server.admission import Lanes
from tools_service.server.image_store import Picture
from tools_service.server.options import Options

_QUEUE = 16  # cells waiting in one session
_QUIET_S = 1.0  # a session without a cell for so long should use no CPU
_AGAIN_S = (0.5, 2.0)  # after an interrupt that did not end the cell
_REMEMBERED = 100_000  # sessions that ended by themselves
_EVICTIONS = 8  # for memory, at one look
_REPLY_S = 0.2  # kept of a caller's deadline for the way back


@dataclass(frozen=True)
class Caller:
    """Whoever asks for a cell."""

    principal: str  # "" where nobody authenticates
    deadline: float  # time.monotonic() after which nobody waits for the answer

    def key(self, name: str) -> str:
        """A caller's name for something, apart from every other caller's."""
        return f"{self.principal}\0{name}"


@dataclass(eq=False)
class Session:
    """A namespace that persists over cells, and over losses its identity."""

    id: str
    principal: str
    order: asyncio.Lock = field(default_factory=asyncio.Lock)
    worker: Worker | None = None
    generation: int = 0
    lost: str = ""  # why the last namespace ended; empty while there has been none or it lives
    waiting: int = 0
    used: float = field(default_factory=time.monotonic)
    running: bool = False
    interrupts: int = 0
    request_id: str = ""  # of the running cell
    quiet: bool = False  # the manager was told that no cell has run for a while


class Sessions:
    """All sessions of the service."""

    def __init__(self, host: Host, options: Options, lanes: Lanes):
        self._host, self._options, self._lanes = host, options, lanes
        self._limits: Limits = options.limits
        self._max = options.max_sessions
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()  # by principal and id, idlest first
        self.waiting = 0
        self._insisting: set[asyncio.Task] = set()
        self._ended: OrderedDict[tuple[str, str], tuple[int, str]] = OrderedDict()  # generation, and why it ended
        self.counters = {"cells": 0, "opened": 0, "expired": 0, "evicted": 0, "killed": 0}

    def __len__(self) -> int:
        return len(self._sessions)

    async def execute(self, request: pb.ExecRequest, pictures: list[Picture], caller: Caller) -> pb.Result:
        """Runs one cell. ``pictures`` are bound when this creates the namespace."""
        arrived = time.monotonic()
        result = pb.Result(request_id=request.request_id, isolation=self._host.info.get("plan", {}).get("tier", ""))
        session = self._find(request, result, caller.principal)
        if session is None:
            return result
        session.waiting += 1
        self.waiting += 1
        try:
            async with session.order:
                if self._sessions.get((session.principal, session.id)) is not session:
                    return _fill(result, pb.SESSION_LOST, "the session was closed while the cell waited")
                session.used = time.monotonic()
                await self._in_order(session, request, pictures, result, arrived, caller.deadline)
                session.used = time.monotonic()
        finally:
            session.waiting -= 1
            self.waiting -= 1
        result.generation = session.generation
        result.session_alive = session.worker is not None
        return result

    def _find(self, request: pb.ExecRequest, result: pb.Result, principal: str) -> Session | None:
        key = principal, request.session_id
        session = self._sessions.get(key)
        if self.waiting >= self._options.queue:
            _fill(result, pb.UNAVAILABLE, f"{self.waiting} cells are already waiting")
            return None
        if session is None:
            if request.expects_state:
                _fill(
                    result,
                    pb.SESSION_LOST,
                    "the session is unknown here: it expired, was evicted, or the service was restarted",
                )
                return None
            if reason := self._make_room(principal):
                _fill(result, pb.UNAVAILABLE, reason)
                return None
            # A caller that counted on nothing hears of a loss all the same.
            generation, lost = self._ended.pop(key, (0, ""))
            session = self._sessions[key] = Session(request.session_id, principal, generation=generation, lost=lost)
        elif session.waiting >= _QUEUE:
            _fill(result, pb.UNAVAILABLE, f"{session.waiting} cells are already waiting in this session")
            return None
        self._sessions.move_to_end(key)
        return session

    def _make_room(self, principal: str) -> str:
        """Makes room for one more session; otherwise says why there is none."""
        share = self._options.sessions_per_client
        if share and sum(session.principal == principal for session in self._sessions.values()) >= share:
            return "" if self._evict(principal) else f"all {share} sessions of this client are in use"
        if len(self._sessions) >= self._max and not self._evict():
            return f"all {self._max} sessions are in use"
        return ""

    def _evict(self, principal: str | None = None) -> bool:
        """Ends the session that has been idle longest, if one, of this principal or of any, was idle long enough."""
        longest = time.monotonic() - self._options.evict_after_s
        for session in self._sessions.values():
            if session.waiting == 0 and session.used < longest and principal in (None, session.principal):
                self._end(session, "the former one was evicted to make room")
                self.counters["evicted"] += 1
                return True
        return False

    async def _in_order(
        self,
        session: Session,
        request: pb.ExecRequest,
        pictures: list[Picture],
        result: pb.Result,
        arrived: float,
        deadline: float,
    ) -> None:
        if session.worker is not None and session.worker.ended.done():
            cause = session.worker.ended.result()
            self._drop_worker(session, f"its process ended between cells ({cause})")
            if cause == "manager lost":
                self._end(session, "the sandbox was restarted")
                _fill(result, pb.SESSION_LOST, "the sandbox was restarted and the session with it")
                return
        async with self._lanes.enter() as lane:
            timeout = min(request.timeout_s or self._limits.timeout_s, self._limits.max_timeout_s)
            timeout = min(timeout, deadline - time.monotonic() - _REPLY_S)
            if timeout <= 0:
                _fill(result, pb.UNAVAILABLE, "the caller's deadline passed while the cell waited")
                return
            fresh = session.worker is None
            if fresh:
                try:
                    session.worker = await self._host.acquire(timeout_s=30.0)
                except SandboxUnavailable as error:
                    _fill(result, pb.UNAVAILABLE, str(error))
                    return
                session.generation += 1
                self.counters["opened"] += 1
                result.restarted = session.generation > 1
            started = time.monotonic()
            result.queue_ms = (started - arrived) * 1e3
            self.counters["cells"] += 1
            lane.running()
            session.running, session.request_id = True, request.request_id
            try:
                await self._cell(session, request, pictures if fresh else [], result, timeout)
            finally:
                session.running, session.request_id = False, ""
            result.wall_ms = (time.monotonic() - started) * 1e3
        if result.restarted and result.status != pb.REFUSED:
            note = f"fresh namespace: {session.lost or 'the former one was lost'}; earlier variables are gone"
            result.message = f"{result.message}; {note}" if result.message else note

    async def _cell(
        self, session: Session, request: pb.ExecRequest, pictures: list[Picture], result: pb.Result, timeout: float
    ) -> None:
        worker, limits = session.worker, self._limits
        reply = asyncio.ensure_future(cell_rpc.ask(worker, limits, request.code, pictures, request.image_format))
        # It may end when nobody waits for it any more.
        reply.add_done_callback(lambda task: task.cancelled() or task.exception())
        session.interrupts = 0
        if session.quiet:
            self._host.busy(worker)
            session.quiet = False
        timed_out, begun = False, time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            done, _ = await asyncio.wait({reply}, timeout=timeout)
            if not done:
                timed_out = True
                self._host.interrupt(worker)
                await asyncio.wait({reply}, timeout=limits.grace_s)
            if not reply.done():
                await self._give_up(
                    session, worker, result, f"the cell ran longer than {timeout:g} s and could not be interrupted"
                )
                return
            answer = reply.result()
            # Its children were not asked to stop, and may be many.
            if (timed_out or session.interrupts) and answer.status != "refused":
                await self._host.clear(worker, begun)
        except cell_rpc.BadReply as error:
            await self._give_up(session, worker, result, f"bad reply ({error})", pb.CRASHED)
            return
        except (asyncio.IncompleteReadError, ConnectionError):
            await self._crashed(session, worker, result, timed_out, timeout)
            return
        except asyncio.CancelledError:
            self._host.kill(worker)
            self._drop_worker(session, "its last cell was cancelled")
            raise
        finally:
            if not reply.done():
                reply.cancel()
        self._answer(session, result, answer, timeout if timed_out else 0.0)

    def _answer(self, session: Session, result: pb.Result, answer: cell_rpc.Reply, timed_out_after: float) -> None:
        if answer.status == "refused":
            self._host.kill(session.worker)
            self._drop_worker(session, "an input picture could not be opened")
            session.generation -= 1
            _fill(result, pb.REFUSED, answer.message)
            return
        result.stdout, result.stderr = answer.stdout, answer.stderr
        for picture in answer.pictures:
            result.images.append(picture.data)
            result.image_infos.add(mime=picture.mime, width=picture.width, height=picture.height)
        result.status = pb.OK if answer.status == "ok" else pb.ERROR
        if timed_out_after:
            _fill(result, pb.TIMEOUT, f"the cell was interrupted after {timed_out_after:g} s; its variables are kept")
            result.stderr += f"TimeoutError: {result.message}\n"
        elif session.interrupts:
            result.message = "the cell was interrupted on request"
        elif self._overflowed(session.worker):
            _fill(result, pb.OUTPUT_LIMIT, f"the cell wrote more than {self._limits.output_mb} MB to stdout or stderr")
            result.stderr += f"OutputLimitError: {result.message}\n"

    def _overflowed(self, worker: Worker) -> bool:
        limit = self._limits.output_mb << 20
        return any(os.lseek(handle, 0, os.SEEK_CUR) >= limit for handle in (worker.out, worker.err))

    async def _give_up(
        self, session: Session, worker: Worker, result: pb.Result, reason: str, status: int = pb.TIMEOUT
    ) -> None:
        """Kills the session's tree; what it had printed is still returned."""
        self._host.kill(worker)
        self.counters["killed"] += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(worker.ended), 5.0)
        self._partial_output(worker, result)
        self._drop_worker(session, f"the former one was killed because {reason}")
        _fill(result, status, f"{reason}; the session was killed, its variables are lost")
        result.stderr += f"{'TimeoutError' if status == pb.TIMEOUT else 'SessionError'}: {result.message}\n"

    async def _crashed(
        self, session: Session, worker: Worker, result: pb.Result, timed_out: bool, timeout: float
    ) -> None:
        if session.worker is not worker:
            _fill(result, pb.SESSION_LOST, "the session was closed while the cell ran")
            return
        self._host.kill(worker)
        try:
            cause = await asyncio.wait_for(asyncio.shield(worker.ended), 5.0)
        except TimeoutError:
            cause = "unknown"
        self._partial_output(worker, result)
        if cause == "manager lost":
            self._end(session, "the sandbox was restarted")
            _fill(result, pb.SESSION_LOST, "the sandbox was restarted and the session with it")
            return
        if cause == "oom":
            status, reason = pb.OOM, f"the session used more than {self._limits.memory_mb} MB of memory"
        elif timed_out:
            status, reason = pb.TIMEOUT, f"the cell ran longer than {timeout:g} s and its process ended"
        else:
            status, reason = pb.CRASHED, f"the session's process ended ({cause})"
        self._drop_worker(session, f"the former one ended because {reason}")
        _fill(result, status, f"{reason}; its variables are lost")
        result.stderr += f"SessionError: {result.message}\n"

    def _partial_output(self, worker: Worker, result: pb.Result) -> None:
        for name, handle in (("stdout", worker.out), ("stderr", worker.err)):
            with contextlib.suppress(OSError):
                setattr(result, name, read_output(handle, self._limits.text_kb << 10).decode("utf-8", "replace"))

    def _drop_worker(self, session: Session, reason: str) -> None:
        if session.worker is not None:
            session.worker.close()
        session.worker, session.lost, session.quiet = None, reason, False

    def _end(self, session: Session, lost: str = "") -> None:
        """Kills the session's process and forgets it, but, if it was ``lost``, not that it was there."""
        key = session.principal, session.id
        self._sessions.pop(key, None)
        if lost and session.generation:
            self._ended[key] = session.generation, lost
            while len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
        if session.worker is not None:
            self._host.kill(session.worker)
            self._drop_worker(session, "closed")

    def close(self, session_id: str, principal: str) -> bool:
        session = self._sessions.get((principal, session_id))
        if session is not None:
            self._end(session)
        return session is not None

    def interrupt(self, session_id: str, principal: str, request_id: str = "") -> bool:
        """Interrupts the running cell, or only the one of a request; False if it does not run."""
        session = self._sessions.get((principal, session_id))
        if session is None or not session.running or session.worker is None:
            return False
        if request_id and session.request_id != request_id:
            return False
        session.interrupts += 1
        self._host.interrupt(session.worker)
        insisting = asyncio.ensure_future(self._insist(session, session.request_id))
        self._insisting.add(insisting)
        insisting.add_done_callback(self._insisting.discard)
        return True

    async def _insist(self, session: Session, request_id: str) -> None:
        """Interrupts again: a signal that arrives before the process has begun with the cell is ignored there."""
        for pause in _AGAIN_S:
            await asyncio.sleep(pause)
            if not session.running or session.request_id != request_id or session.worker is None:
                return
            self._host.interrupt(session.worker)

    async def look_after(self) -> None:
        """Ends idle sessions, those idle longest when memory runs short, and has those that stay watched, for ever."""
        while True:
            await asyncio.sleep(min(_QUIET_S, self._options.idle_s / 4))
            now = time.monotonic()
            for session in [s for s in self._sessions.values() if s.waiting == 0]:
                if session.used < now - self._options.idle_s:
                    self._end(session, "the former one expired")
                    self.counters["expired"] += 1
                elif session.worker is not None and not session.quiet and session.used < now - _QUIET_S:
                    self._host.quiet(session.worker)
                    session.quiet = True
            for _ in range(_EVICTIONS):
                if memory.available_mb() >= self._options.memory_floor_mb or not self._evict():
                    break


def _fill(result: pb.Result, status: int, message: str) -> pb.Result:
    result.status, result.message = status, message
    return result
