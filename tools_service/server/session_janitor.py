"""The background task that ends unused sessions, and those that the machine has no memory for."""

from __future__ import annotations

import asyncio
import time

from tools_service.sandbox.manager.manager_client import SandboxManagerClient
from tools_service.server import memory
from tools_service.server.options import ServiceOptions
from tools_service.server.sessions import SessionRegistry

_IDLE_S = 1.0  # a session without a cell for this long may be stopped by the CPU watchdog
_MAX_EVICTIONS_PER_SWEEP = 8  # under memory pressure


class SessionJanitor:
    """Expires idle sessions, evicts least recently used ones under memory pressure, and marks the others idle."""

    def __init__(self, manager: SandboxManagerClient, sessions: SessionRegistry, options: ServiceOptions):
        self._manager, self._sessions, self._options = manager, sessions, options

    async def run(self) -> None:
        """Sweeps until it is canceled."""
        while True:
            await asyncio.sleep(min(_IDLE_S, self._options.idle_s / 4))
            self.sweep()

    def sweep(self) -> None:
        """Looks at every session once."""
        now = time.monotonic()
        for session in self._sessions.unused():
            if session.last_used < now - self._options.idle_s:
                self._sessions.expire(session)
            elif session.worker is not None and not session.idle and session.last_used < now - _IDLE_S:
                self._manager.mark_idle(session.worker)
                session.idle = True
        for _ in range(_MAX_EVICTIONS_PER_SWEEP):
            if memory.available_mb() >= self._options.memory_floor_mb or not self._sessions.evict():
                break
