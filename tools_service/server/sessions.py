"""Sessions: one confined process each; cells run in order, with time-outs, interrupts and recovery after a loss."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from tools_service.proto import tools_pb2 as pb
from tools_service.sandbox.manager.manager_client import SandboxManagerClient, SandboxUnavailable, WorkerHandle
from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.sandbox.worker.cell_loop import read_output
from tools_service.server import cell_rpc, memory
from tools_service.server.admission import AdmissionController
from tools_service.server.image_store import SealedImage
from tools_service.server.options import ServiceOptions

_MAX_QUEUED_PER_SESSION = 16  # cells queued in one session
_IDLE_S = 1.0  # a session without a cell for this long may be stopped by the CPU watchdog
_INTERRUPT_RETRY_S = (0.5, 2.0)  # pauses before SIGINT is sent again to a cell that still runs
_MAX_LOST_SESSIONS = 100_000  # remembered, so that their next cell reports the loss
_MAX_EVICTIONS_PER_SWEEP = 8  # under memory pressure, per sweep of the janitor
_REPLY_MARGIN_S = 0.2  # of the caller's deadline, reserved for sending the reply


@dataclass(frozen=True)
class CallContext:
    """The caller and the deadline of one RPC."""

    principal: str  # hash of the credentials; "" if the service does not authenticate
    deadline: float  # time.monotonic() at which the RPC expires

    def scoped_key(self, name: str) -> str:
        """Returns `name` scoped to the principal, so that equal names of two callers do not collide."""
        return f"{self.principal}\0{name}"


@dataclass(eq=False)
class SandboxSession:
    """A named sequence of cells. Its namespace persists over cells; after a loss, `generation` counts a new one."""

    id: str
    principal: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    worker: WorkerHandle | None = None
    generation: int = 0
    lost_reason: str = ""  # why the last namespace ended; empty before the first loss
    queued: int = 0
    last_used: float = field(default_factory=time.monotonic)
    running: bool = False
    interrupts: int = 0
    request_id: str = ""  # request id of the running cell
    idle: bool = False  # the manager has been notified that no cell runs


class SessionRegistry:
    """Creates, runs, interrupts, evicts and expires the sessions of the service."""

    def __init__(self, manager: SandboxManagerClient, options: ServiceOptions, admission: AdmissionController):
        self._manager, self._options, self._admission = manager, options, admission
        self._limits: Limits = options.limits
        self._max_sessions = options.max_sessions
        # By (principal, id), least recently used first.
        self._sessions: OrderedDict[tuple[str, str], SandboxSession] = OrderedDict()
        self.queued = 0
        self._interrupt_retries: set[asyncio.Task] = set()
        self._lost_sessions: OrderedDict[tuple[str, str], tuple[int, str]] = OrderedDict()  # (generation, reason)
        self.counters = {"cells": 0, "opened": 0, "expired": 0, "evicted": 0, "killed": 0}

    def __len__(self) -> int:
        return len(self._sessions)

    async def execute(self, request: pb.ExecRequest, images: list[SealedImage], call: CallContext) -> pb.Result:
        """Runs one cell and returns its result. `images` are bound only if this cell creates the namespace."""
        arrived = time.monotonic()
        result = pb.Result(
            request_id=request.request_id, isolation=self._manager.info.get("config", {}).get("tier", "")
        )
        session = self._get_or_create(request, result, call.principal)
        if session is None:
            return result
        session.queued += 1
        self.queued += 1
        try:
            async with session.lock:
                if self._sessions.get((session.principal, session.id)) is not session:
                    return _set_status(result, pb.SESSION_LOST, "the session was closed while the cell waited")
                session.last_used = time.monotonic()
                await self._execute_locked(session, request, images, result, arrived, call.deadline)
                session.last_used = time.monotonic()
        finally:
            session.queued -= 1
            self.queued -= 1
        result.generation = session.generation
        result.session_alive = session.worker is not None
        return result

    def _get_or_create(self, request: pb.ExecRequest, result: pb.Result, principal: str) -> SandboxSession | None:
        key = principal, request.session_id
        session = self._sessions.get(key)
        if self.queued >= self._options.queue:
            _set_status(result, pb.UNAVAILABLE, f"{self.queued} cells are already waiting")
            return None
        if session is None:
            if request.expects_state:
                _set_status(
                    result,
                    pb.SESSION_LOST,
                    "the session is unknown here: it expired, was evicted, or the service was restarted",
                )
                return None
            if reason := self._make_room(principal):
                _set_status(result, pb.UNAVAILABLE, reason)
                return None
            # The loss is reported (restarted=True) also to a caller that did not set expects_state.
            generation, lost_reason = self._lost_sessions.pop(key, (0, ""))
            session = self._sessions[key] = SandboxSession(
                request.session_id, principal, generation=generation, lost_reason=lost_reason
            )
        elif session.queued >= _MAX_QUEUED_PER_SESSION:
            _set_status(result, pb.UNAVAILABLE, f"{session.queued} cells are already waiting in this session")
            return None
        self._sessions.move_to_end(key)
        return session

    def _make_room(self, principal: str) -> str:
        """Evicts a session if the limit is reached; returns the reason if that is impossible, else an empty string."""
        share = self._options.sessions_per_client
        if share and sum(session.principal == principal for session in self._sessions.values()) >= share:
            return "" if self._evict(principal) else f"all {share} sessions of this client are in use"
        if len(self._sessions) >= self._max_sessions and not self._evict():
            return f"all {self._max_sessions} sessions are in use"
        return ""

    def _evict(self, principal: str | None = None) -> bool:
        """Ends the least recently used session (of `principal` if given) that has been idle for `evict_after_s`."""
        idle_before = time.monotonic() - self._options.evict_after_s
        for session in self._sessions.values():
            if session.queued == 0 and session.last_used < idle_before and principal in (None, session.principal):
                self._end_session(session, "the former one was evicted to make room")
                self.counters["evicted"] += 1
                return True
        return False

    async def _execute_locked(
        self,
        session: SandboxSession,
        request: pb.ExecRequest,
        images: list[SealedImage],
        result: pb.Result,
        arrived: float,
        deadline: float,
    ) -> None:
        if session.worker is not None and session.worker.ended.done():
            cause = session.worker.ended.result()
            self._detach_worker(session, f"its process ended between cells ({cause})")
            if cause == "manager lost":
                self._end_session(session, "the sandbox was restarted")
                _set_status(result, pb.SESSION_LOST, "the sandbox was restarted and the session with it")
                return
        async with self._admission.admit() as slot:
            timeout = min(request.timeout_s or self._limits.timeout_s, self._limits.max_timeout_s)
            timeout = min(timeout, deadline - time.monotonic() - _REPLY_MARGIN_S)
            if timeout <= 0:
                _set_status(result, pb.UNAVAILABLE, "the caller's deadline passed while the cell waited")
                return
            new_namespace = session.worker is None
            if new_namespace:
                try:
                    session.worker = await self._manager.acquire(timeout_s=30.0)
                except SandboxUnavailable as error:
                    _set_status(result, pb.UNAVAILABLE, str(error))
                    return
                session.generation += 1
                self.counters["opened"] += 1
                result.restarted = session.generation > 1
            started = time.monotonic()
            result.queue_ms = (started - arrived) * 1e3
            self.counters["cells"] += 1
            slot.start_timer()
            session.running, session.request_id = True, request.request_id
            try:
                await self._run_cell(session, request, images if new_namespace else [], result, timeout)
            finally:
                session.running, session.request_id = False, ""
            result.wall_ms = (time.monotonic() - started) * 1e3
        if result.restarted and result.status != pb.REFUSED:
            note = f"fresh namespace: {session.lost_reason or 'the former one was lost'}; earlier variables are gone"
            result.message = f"{result.message}; {note}" if result.message else note

    async def _run_cell(
        self,
        session: SandboxSession,
        request: pb.ExecRequest,
        images: list[SealedImage],
        result: pb.Result,
        timeout: float,
    ) -> None:
        worker, limits = session.worker, self._limits
        reply = asyncio.ensure_future(cell_rpc.run_cell(worker, limits, request.code, images, request.image_format))
        # Retrieves the exception of a reply that is no longer awaited, which asyncio would otherwise log.
        reply.add_done_callback(lambda task: task.cancelled() or task.exception())
        session.interrupts = 0
        if session.idle:
            self._manager.mark_active(worker)
            session.idle = False
        timed_out, cell_start = False, time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            done, _ = await asyncio.wait({reply}, timeout=timeout)
            if not done:
                timed_out = True
                self._manager.interrupt(worker)
                await asyncio.wait({reply}, timeout=limits.grace_s)
            if not reply.done():
                await self._kill_unresponsive(
                    session, worker, result, f"the cell ran longer than {timeout:g} s and could not be interrupted"
                )
                return
            answer = reply.result()
            # Its child processes did not receive the SIGINT and would keep using the session's process limit.
            if (timed_out or session.interrupts) and answer.status != "refused":
                await self._manager.kill_descendants(worker, cell_start)
        except cell_rpc.ProtocolError as error:
            await self._kill_unresponsive(session, worker, result, f"bad reply ({error})", pb.CRASHED)
            return
        except (asyncio.IncompleteReadError, ConnectionError):
            await self._handle_process_exit(session, worker, result, timed_out, timeout)
            return
        except asyncio.CancelledError:
            self._manager.kill(worker)
            self._detach_worker(session, "its last cell was cancelled")
            raise
        finally:
            if not reply.done():
                reply.cancel()
        self._fill_result(session, result, answer, timeout if timed_out else 0.0)

    def _fill_result(
        self, session: SandboxSession, result: pb.Result, answer: cell_rpc.CellReply, timed_out_after: float
    ) -> None:
        if answer.status == "refused":
            self._manager.kill(session.worker)
            self._detach_worker(session, "an input picture could not be opened")
            session.generation -= 1
            _set_status(result, pb.REFUSED, answer.message)
            return
        result.stdout, result.stderr = answer.stdout, answer.stderr
        for image in answer.images:
            result.images.append(image.data)
            result.image_infos.add(mime=image.mime, width=image.width, height=image.height)
        result.status = pb.OK if answer.status == "ok" else pb.ERROR
        if timed_out_after:
            _set_status(
                result, pb.TIMEOUT, f"the cell was interrupted after {timed_out_after:g} s; its variables are kept"
            )
            result.stderr += f"TimeoutError: {result.message}\n"
        elif session.interrupts:
            result.message = "the cell was interrupted on request"
        elif self._output_overflowed(session.worker):
            _set_status(
                result, pb.OUTPUT_LIMIT, f"the cell wrote more than {self._limits.output_mb} MB to stdout or stderr"
            )
            result.stderr += f"OutputLimitError: {result.message}\n"

    def _output_overflowed(self, worker: WorkerHandle) -> bool:
        limit = self._limits.output_mb << 20
        return any(os.lseek(fd, 0, os.SEEK_CUR) >= limit for fd in (worker.out, worker.err))

    async def _kill_unresponsive(
        self, session: SandboxSession, worker: WorkerHandle, result: pb.Result, reason: str, status: int = pb.TIMEOUT
    ) -> None:
        """Kills the session's process tree and returns the output that the cell has written so far."""
        self._manager.kill(worker)
        self.counters["killed"] += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(worker.ended), 5.0)
        self._read_partial_output(worker, result)
        self._detach_worker(session, f"the former one was killed because {reason}")
        _set_status(result, status, f"{reason}; the session was killed, its variables are lost")
        result.stderr += f"{'TimeoutError' if status == pb.TIMEOUT else 'SessionError'}: {result.message}\n"

    async def _handle_process_exit(
        self, session: SandboxSession, worker: WorkerHandle, result: pb.Result, timed_out: bool, timeout: float
    ) -> None:
        if session.worker is not worker:
            _set_status(result, pb.SESSION_LOST, "the session was closed while the cell ran")
            return
        self._manager.kill(worker)
        try:
            cause = await asyncio.wait_for(asyncio.shield(worker.ended), 5.0)
        except TimeoutError:
            cause = "unknown"
        self._read_partial_output(worker, result)
        if cause == "manager lost":
            self._end_session(session, "the sandbox was restarted")
            _set_status(result, pb.SESSION_LOST, "the sandbox was restarted and the session with it")
            return
        if cause == "oom":
            status, reason = pb.OOM, f"the session used more than {self._limits.memory_mb} MB of memory"
        elif timed_out:
            status, reason = pb.TIMEOUT, f"the cell ran longer than {timeout:g} s and its process ended"
        else:
            status, reason = pb.CRASHED, f"the session's process ended ({cause})"
        self._detach_worker(session, f"the former one ended because {reason}")
        _set_status(result, status, f"{reason}; its variables are lost")
        result.stderr += f"SessionError: {result.message}\n"

    def _read_partial_output(self, worker: WorkerHandle, result: pb.Result) -> None:
        for name, fd in (("stdout", worker.out), ("stderr", worker.err)):
            with contextlib.suppress(OSError):
                setattr(result, name, read_output(fd, self._limits.text_kb << 10).decode("utf-8", "replace"))

    def _detach_worker(self, session: SandboxSession, reason: str) -> None:
        if session.worker is not None:
            session.worker.close()
        session.worker, session.lost_reason, session.idle = None, reason, False

    def _end_session(self, session: SandboxSession, lost_reason: str = "") -> None:
        """Kills the session's process and removes the session.

        With a `lost_reason` its generation is remembered, so that the next cell of this id reports the loss.
        """
        key = session.principal, session.id
        self._sessions.pop(key, None)
        if lost_reason and session.generation:
            self._lost_sessions[key] = session.generation, lost_reason
            while len(self._lost_sessions) > _MAX_LOST_SESSIONS:
                self._lost_sessions.popitem(last=False)
        if session.worker is not None:
            self._manager.kill(session.worker)
            self._detach_worker(session, "closed")

    def close_session(self, session_id: str, principal: str) -> bool:
        session = self._sessions.get((principal, session_id))
        if session is not None:
            self._end_session(session)
        return session is not None

    def interrupt_cell(self, session_id: str, principal: str, request_id: str = "") -> bool:
        """Interrupts the running cell, or only that of `request_id`. Returns False if it does not run."""
        session = self._sessions.get((principal, session_id))
        if session is None or not session.running or session.worker is None:
            return False
        if request_id and session.request_id != request_id:
            return False
        session.interrupts += 1
        self._manager.interrupt(session.worker)
        retry = asyncio.ensure_future(self._retry_interrupt(session, session.request_id))
        self._interrupt_retries.add(retry)
        retry.add_done_callback(self._interrupt_retries.discard)
        return True

    async def _retry_interrupt(self, session: SandboxSession, request_id: str) -> None:
        """Sends SIGINT again: one that arrives before the process has started the cell is ignored there."""
        for pause in _INTERRUPT_RETRY_S:
            await asyncio.sleep(pause)
            if not session.running or session.request_id != request_id or session.worker is None:
                return
            self._manager.interrupt(session.worker)

    async def run_janitor(self) -> None:
        """Background task: expires idle sessions, evicts least recently used ones under memory pressure, and marks the
        remaining ones idle for the CPU watchdog."""
        while True:
            await asyncio.sleep(min(_IDLE_S, self._options.idle_s / 4))
            now = time.monotonic()
            for session in [s for s in self._sessions.values() if s.queued == 0]:
                if session.last_used < now - self._options.idle_s:
                    self._end_session(session, "the former one expired")
                    self.counters["expired"] += 1
                elif session.worker is not None and not session.idle and session.last_used < now - _IDLE_S:
                    self._manager.mark_idle(session.worker)
                    session.idle = True
            for _ in range(_MAX_EVICTIONS_PER_SWEEP):
                if memory.available_mb() >= self._options.memory_floor_mb or not self._evict():
                    break


def _set_status(result: pb.Result, status: int, message: str) -> pb.Result:
    result.status, result.message = status, message
    return result
