"""The registry of sessions: creates, finds, evicts, ends and remembers them. It runs no cell."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tools_service.proto import tools_pb2 as pb
from tools_service.sandbox.manager.manager_client import SandboxManagerClient, WorkerHandle
from tools_service.server.cell_outcome import NotExecuted
from tools_service.server.options import ServiceOptions

_MAX_QUEUED_PER_SESSION = 16  # cells queued in one session
_MAX_LOST_SESSIONS = 100_000  # remembered, so that their next cell reports the loss


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

    def detach_worker(self, reason: str) -> None:
        """Closes the session's end of its process; the next cell starts another one and reports `reason`."""
        if self.worker is not None:
            self.worker.close()
        self.worker, self.lost_reason, self.idle = None, reason, False


class SessionRegistry:
    """The sessions of the service by (principal, id), least recently used first."""

    def __init__(self, manager: SandboxManagerClient, options: ServiceOptions):
        self._manager, self._options = manager, options
        self._sessions: OrderedDict[tuple[str, str], SandboxSession] = OrderedDict()
        self._lost_sessions: OrderedDict[tuple[str, str], tuple[int, str]] = OrderedDict()  # (generation, reason)
        self.queued = 0  # cells that wait or run, in all sessions
        self.counters = {"cells": 0, "opened": 0, "expired": 0, "evicted": 0, "killed": 0}

    def __len__(self) -> int:
        return len(self._sessions)

    def get_or_create(self, session_id: str, principal: str, expects_state: bool) -> SandboxSession:
        """Returns the session, which becomes the most recently used one.

        Raises:
            NotExecuted: no more cells are accepted, or `expects_state` and the session is unknown.
        """
        key = principal, session_id
        session = self._sessions.get(key)
        if self.queued >= self._options.queue:
            raise NotExecuted(pb.UNAVAILABLE, f"{self.queued} cells are already waiting")
        if session is None:
            if expects_state:
                message = "the session is unknown here: it expired, was evicted, or the service was restarted"
                raise NotExecuted(pb.SESSION_LOST, message)
            self._make_room(principal)
            # The loss is reported (restarted=True) also to a caller that did not set expects_state.
            generation, lost_reason = self._lost_sessions.pop(key, (0, ""))
            session = self._sessions[key] = SandboxSession(
                session_id, principal, generation=generation, lost_reason=lost_reason
            )
        elif session.queued >= _MAX_QUEUED_PER_SESSION:
            raise NotExecuted(pb.UNAVAILABLE, f"{session.queued} cells are already waiting in this session")
        self._sessions.move_to_end(key)
        return session

    def find(self, session_id: str, principal: str) -> SandboxSession | None:
        """Returns the session if it exists, without counting as a use."""
        return self._sessions.get((principal, session_id))

    def contains(self, session: SandboxSession) -> bool:
        """Returns False if the session was ended, also if another one has its id by now."""
        return self._sessions.get((session.principal, session.id)) is session

    @contextlib.contextmanager
    def count_queued(self, session: SandboxSession) -> Iterator[None]:
        """Counts one cell of the session as queued or running while the context lasts."""
        session.queued += 1
        self.queued += 1
        try:
            yield
        finally:
            session.queued -= 1
            self.queued -= 1

    def unused(self) -> list[SandboxSession]:
        """Returns the sessions in which no cell waits or runs."""
        return [session for session in self._sessions.values() if session.queued == 0]

    def _make_room(self, principal: str) -> None:
        """Evicts a session if a limit is reached. Raises NotExecuted if that is impossible."""
        share = self._options.sessions_per_client
        if share and sum(session.principal == principal for session in self._sessions.values()) >= share:
            if not self.evict(principal):
                raise NotExecuted(pb.UNAVAILABLE, f"all {share} sessions of this client are in use")
        elif len(self._sessions) >= self._options.max_sessions and not self.evict():
            raise NotExecuted(pb.UNAVAILABLE, f"all {self._options.max_sessions} sessions are in use")

    def evict(self, principal: str | None = None) -> bool:
        """Ends the least recently used session (of `principal` if given) that has been idle for `evict_after_s`."""
        idle_before = time.monotonic() - self._options.evict_after_s
        for session in self.unused():
            if session.last_used < idle_before and principal in (None, session.principal):
                self.end(session, "the former one was evicted to make room")
                self.counters["evicted"] += 1
                return True
        return False

    def expire(self, session: SandboxSession) -> None:
        """Ends a session that was unused for too long."""
        self.end(session, "the former one expired")
        self.counters["expired"] += 1

    def end(self, session: SandboxSession, lost_reason: str = "") -> None:
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
            session.detach_worker("closed")

    def close(self, session_id: str, principal: str) -> bool:
        """Ends the session at its caller's request. Returns False if it is unknown."""
        session = self.find(session_id, principal)
        if session is not None:
            self.end(session)
        return session is not None
