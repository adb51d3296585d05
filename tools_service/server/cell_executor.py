"""Runs cells in their sessions: in order, with time-outs, interrupts, and recovery after a loss."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass, replace

from tools_service.proto import tools_pb2 as pb
from tools_service.sandbox.manager.manager_client import SandboxManagerClient, SandboxUnavailable, WorkerHandle
from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.sandbox.protocol.output_files import read_output
from tools_service.server import cell_rpc
from tools_service.server.admission import AdmissionController, Slot
from tools_service.server.cell_outcome import CellOutcome, NotExecuted
from tools_service.server.image_store import SealedImage
from tools_service.server.sessions import SandboxSession, SessionRegistry

_ACQUIRE_TIMEOUT_S = 30.0  # for a session process
_INTERRUPT_RETRY_S = (0.5, 2.0)  # pauses before SIGINT is sent again to a cell that still runs
_REPLY_MARGIN_S = 0.2  # of the caller's deadline, reserved for sending the reply
_EXIT_WAIT_S = 5.0  # for the manager's report of a killed process
_MANAGER_LOST = "the sandbox was restarted and the session with it"


@dataclass(frozen=True)
class CallContext:
    """The caller and the deadline of one RPC."""

    principal: str  # hash of the credentials; "" if the service does not authenticate
    deadline: float  # time.monotonic() at which the RPC expires

    def scoped_key(self, name: str) -> str:
        """Returns `name` scoped to the principal, so that equal names of two callers do not collide."""
        return f"{self.principal}\0{name}"


class CellExecutor:
    """Executes cells: waits for their turn and a slot, starts a process if needed, and returns what came of it."""

    def __init__(
        self,
        manager: SandboxManagerClient,
        sessions: SessionRegistry,
        admission: AdmissionController,
        limits: Limits,
    ):
        self._manager, self._sessions, self._admission, self._limits = manager, sessions, admission, limits
        self._interrupt_retries: set[asyncio.Task] = set()

    async def execute(self, request: pb.ExecRequest, images: list[SealedImage], call: CallContext) -> pb.Result:
        """Runs one cell and returns its result. `images` are bound only if this cell creates the namespace."""
        try:
            outcome = await self._execute(request, images, call)
        except NotExecuted as error:
            outcome = CellOutcome(error.status, str(error))
        return outcome.to_result(request.request_id, self._manager.info.get("config", {}).get("tier", ""))

    async def _execute(self, request: pb.ExecRequest, images: list[SealedImage], call: CallContext) -> CellOutcome:
        arrived = time.monotonic()
        session = self._sessions.get_or_create(request.session_id, call.principal, request.expects_state)
        with self._sessions.count_queued(session):
            async with session.lock:
                if not self._sessions.contains(session):
                    raise NotExecuted(pb.SESSION_LOST, "the session was closed while the cell waited")
                session.last_used = time.monotonic()
                try:
                    outcome = await self._execute_locked(session, request, images, arrived, call.deadline)
                except NotExecuted as error:
                    outcome = CellOutcome(error.status, str(error))
                session.last_used = time.monotonic()
        return replace(outcome, generation=session.generation, session_alive=session.worker is not None)

    async def _execute_locked(
        self,
        session: SandboxSession,
        request: pb.ExecRequest,
        images: list[SealedImage],
        arrived: float,
        deadline: float,
    ) -> CellOutcome:
        """Runs the cell once it has its turn in the session. Raises NotExecuted if it was not started."""
        self._detach_ended_worker(session)
        async with self._admission.admit() as slot:
            timeout = min(request.timeout_s or self._limits.timeout_s, self._limits.max_timeout_s)
            timeout = min(timeout, deadline - time.monotonic() - _REPLY_MARGIN_S)
            if timeout <= 0:
                raise NotExecuted(pb.UNAVAILABLE, "the caller's deadline passed while the cell waited")
            new_namespace = session.worker is None
            if new_namespace:
                await self._acquire_worker(session)
            restarted, started = new_namespace and session.generation > 1, time.monotonic()
            outcome = await self._run_in_slot(session, request, images if new_namespace else [], timeout, slot)
            outcome = replace(
                outcome,
                restarted=restarted,
                queue_ms=(started - arrived) * 1e3,
                wall_ms=(time.monotonic() - started) * 1e3,
            )
        if outcome.restarted and outcome.status != pb.REFUSED:
            note = f"fresh namespace: {session.lost_reason or 'the former one was lost'}; earlier variables are gone"
            outcome = replace(outcome, message=f"{outcome.message}; {note}" if outcome.message else note)
        return outcome

    def _detach_ended_worker(self, session: SandboxSession) -> None:
        """Detaches a process that ended between cells. Raises NotExecuted if the manager, too, was lost."""
        if session.worker is None or not session.worker.ended.done():
            return
        cause = session.worker.ended.result()
        session.detach_worker(f"its process ended between cells ({cause})")
        if cause == "manager lost":
            self._sessions.end(session, "the sandbox was restarted")
            raise NotExecuted(pb.SESSION_LOST, _MANAGER_LOST)

    async def _acquire_worker(self, session: SandboxSession) -> None:
        try:
            session.worker = await self._manager.acquire(timeout_s=_ACQUIRE_TIMEOUT_S)
        except SandboxUnavailable as error:
            raise NotExecuted(pb.UNAVAILABLE, str(error)) from None
        session.generation += 1
        self._sessions.counters["opened"] += 1

    async def _run_in_slot(
        self, session: SandboxSession, request: pb.ExecRequest, images: list[SealedImage], timeout: float, slot: Slot
    ) -> CellOutcome:
        self._sessions.counters["cells"] += 1
        slot.start_timer()
        session.running, session.request_id = True, request.request_id
        try:
            return await self._run_cell(session, request, images, timeout)
        finally:
            session.running, session.request_id = False, ""

    async def _run_cell(
        self, session: SandboxSession, request: pb.ExecRequest, images: list[SealedImage], timeout: float
    ) -> CellOutcome:
        worker, limits = session.worker, self._limits
        assert worker is not None  # `_run_in_slot` is called with a live session
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
                reason = f"the cell ran longer than {timeout:g} s and could not be interrupted"
                return await self._kill_unresponsive(session, worker, reason, pb.TIMEOUT)
            answer = reply.result()
            # Its child processes did not receive the SIGINT and would keep using the session's process limit.
            if (timed_out or session.interrupts) and answer.status != "refused":
                await self._manager.kill_descendants(worker, cell_start)
        except cell_rpc.ProtocolError as error:
            return await self._kill_unresponsive(session, worker, f"bad reply ({error})", pb.CRASHED)
        except (asyncio.IncompleteReadError, ConnectionError):
            return await self._outcome_of_exit(session, worker, timeout if timed_out else 0.0)
        except asyncio.CancelledError:
            self._manager.kill(worker)
            session.detach_worker("its last cell was cancelled")
            raise
        finally:
            if not reply.done():
                reply.cancel()
        return self._outcome_of_reply(session, worker, answer, timeout if timed_out else 0.0)

    def _outcome_of_reply(
        self, session: SandboxSession, worker: WorkerHandle, answer: cell_rpc.CellReply, timed_out_after: float
    ) -> CellOutcome:
        if answer.status == "refused":
            self._manager.kill(worker)
            session.detach_worker("an input picture could not be opened")
            session.generation -= 1
            return CellOutcome(pb.REFUSED, answer.message)
        status, message, error_line = pb.OK if answer.status == "ok" else pb.ERROR, "", ""
        if timed_out_after:
            status, message = (
                pb.TIMEOUT,
                f"the cell was interrupted after {timed_out_after:g} s; its variables are kept",
            )
            error_line = f"TimeoutError: {message}\n"
        elif session.interrupts:
            message = "the cell was interrupted on request"
        elif self._output_overflowed(worker):
            status = pb.OUTPUT_LIMIT
            message = f"the cell wrote more than {self._limits.output_mb} MB to stdout or stderr"
            error_line = f"OutputLimitError: {message}\n"
        return CellOutcome(status, message, answer.stdout, answer.stderr + error_line, tuple(answer.images))

    def _output_overflowed(self, worker: WorkerHandle) -> bool:
        limit = self._limits.output_mb << 20
        return any(os.lseek(fd, 0, os.SEEK_CUR) >= limit for fd in (worker.out, worker.err))

    async def _kill_unresponsive(
        self, session: SandboxSession, worker: WorkerHandle, reason: str, status: pb.Status
    ) -> CellOutcome:
        """Kills the session's process tree and returns the output that the cell has written so far."""
        self._manager.kill(worker)
        self._sessions.counters["killed"] += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(worker.ended), _EXIT_WAIT_S)
        stdout, stderr = self._read_partial_output(worker)
        session.detach_worker(f"the former one was killed because {reason}")
        message = f"{reason}; the session was killed, its variables are lost"
        name = "TimeoutError" if status == pb.TIMEOUT else "SessionError"
        return CellOutcome(status, message, stdout, f"{stderr}{name}: {message}\n")

    async def _outcome_of_exit(
        self, session: SandboxSession, worker: WorkerHandle, timed_out_after: float
    ) -> CellOutcome:
        """Returns the outcome of a cell whose process ended, with the output that it has written so far."""
        if session.worker is not worker:
            return CellOutcome(pb.SESSION_LOST, "the session was closed while the cell ran")
        self._manager.kill(worker)
        try:
            cause = await asyncio.wait_for(asyncio.shield(worker.ended), _EXIT_WAIT_S)
        except TimeoutError:
            cause = "unknown"
        stdout, stderr = self._read_partial_output(worker)
        if cause == "manager lost":
            self._sessions.end(session, "the sandbox was restarted")
            return CellOutcome(pb.SESSION_LOST, _MANAGER_LOST, stdout, stderr)
        if cause == "oom":
            status, reason = pb.OOM, f"the session used more than {self._limits.memory_mb} MB of memory"
        elif timed_out_after:
            status, reason = pb.TIMEOUT, f"the cell ran longer than {timed_out_after:g} s and its process ended"
        else:
            status, reason = pb.CRASHED, f"the session's process ended ({cause})"
        session.detach_worker(f"the former one ended because {reason}")
        message = f"{reason}; its variables are lost"
        return CellOutcome(status, message, stdout, f"{stderr}SessionError: {message}\n")

    def _read_partial_output(self, worker: WorkerHandle) -> tuple[str, str]:
        """Returns the (stdout, stderr) written so far; empty for a stream whose file was closed meanwhile."""
        texts = ["", ""]
        for i, fd in enumerate((worker.out, worker.err)):
            with contextlib.suppress(OSError):
                texts[i] = read_output(fd, self._limits.text_kb << 10).decode("utf-8", "replace")
        return texts[0], texts[1]

    def interrupt_cell(self, session_id: str, principal: str, request_id: str = "") -> bool:
        """Interrupts the running cell, or only that of `request_id`. Returns False if it does not run."""
        session = self._sessions.find(session_id, principal)
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
