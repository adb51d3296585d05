"""The asyncio client: sessions on replicas, batches with retries, exactly one result for every request."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Literal

import grpc

from tools_service.client import messages
from tools_service.client.messages import ExecRequest, Request, Status, ToolResult
from tools_service.client.replicas import Replica, Tls, resolve
from tools_service.proto import tools_pb2 as pb

_ATTEMPTS = 4
_BACKOFF_S = 0.3
_FINAL = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class AsyncToolsClient:
    """Everything runs on the loop that first uses it.

    A session is opened on the replica with the most room and stays there. When its replica goes, the session is
    reported as lost; sessions that were not opened yet, and searches, go to another one.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        token: str | None = None,
        tls: Tls | None = None,
        image_format: Literal["png", "webp"] = "png",
        request_timeout_s: float = float("inf"),
    ):
        """``addresses``: host:port, several with commas between. ``request_timeout_s``: a request that has no
        answer after so long, retries included, ends as UNAVAILABLE."""
        self._addresses, self._token, self._tls = addresses, token, tls
        self._format, self._within_s = image_format, request_timeout_s
        self._replicas: list[Replica] = []
        self._connecting: asyncio.Lock | None = None
        self._homes: dict[str, Replica] = {}  # of sessions
        self._names: dict[str, str] = {}  # sessions' ids on the wire
        self._opened: set[str] = set()  # sessions in which a cell of ours has run

    async def replicas(self) -> list[Replica]:
        """Connects if that was not done. Raises ValueError for a bad address, OSError for a bad certificate."""
        if not self._replicas:
            self._connecting = self._connecting or asyncio.Lock()
            async with self._connecting:
                if not self._replicas:
                    found = await resolve(self._addresses)
                    self._replicas = [Replica(address, name, self._token, self._tls) for address, name in found]
        return self._replicas

    async def run(self, requests: Sequence[Request]) -> AsyncIterator[ToolResult]:
        """Exactly one result for every request, in order of completion. Cells of one session run in order."""
        results: asyncio.Queue[ToolResult] = asyncio.Queue()
        cells = [r for r in requests if isinstance(r, ExecRequest)]
        searches = [r for r in requests if not isinstance(r, ExecRequest)]
        batches = [*messages.cut(cells), *messages.cut(searches)]
        tasks = [asyncio.create_task(self._run_batch(batch, results)) for batch in batches]
        try:
            for _ in requests:
                yield await results.get()
        finally:
            for task in tasks:
                task.cancel()

    async def close_sessions(self, ids: Iterable[str]) -> None:
        """Ends sessions. Unknown ones are ignored."""
        by_home: dict[Replica, list[str]] = {}
        for session in ids:
            home, name = self._homes.pop(session, None), self._names.pop(session, session)
            self._opened.discard(session)
            if home is not None:
                by_home.setdefault(home, []).append(name)
        for home, names in by_home.items():
            await home.close_sessions(names)

    async def interrupt(self, session: str) -> bool:
        """Interrupts the running cell of a session; False if none is running. Raises AioRpcError."""
        home = self._homes.get(session)
        return home is not None and await home.interrupt(self._names[session])

    async def info(self) -> dict:
        """What the first replica says of itself: tier, limits, providers, packages, counters. Raises AioRpcError."""
        return await (await self.replicas())[0].info()

    async def close(self) -> None:
        for replica in self._replicas:
            await replica.close()

    # One batch

    async def _run_batch(self, batch: list[Request], results: asyncio.Queue[ToolResult]) -> None:
        """Asks until every request of the batch has its answer, or the attempts or the time are used up."""
        waiting = {request.request_id: request for request in batch}
        why = ["no answer"]
        try:
            async with asyncio.timeout(self._within_s if self._within_s < float("inf") else None):
                await self._attempts(waiting, results, why)
        except TimeoutError:
            why.append(f"no answer within {self._within_s:g} s ({why[-1]})")
        except Exception as error:  # a request that cannot be put on the wire must still get its answer
            why.append(f"{type(error).__name__}: {error}")
        for request in waiting.values():
            results.put_nowait(self._lost(request, why[-1]))

    async def _attempts(self, waiting: dict[str, Request], results: asyncio.Queue, why: list[str]) -> None:
        resend: set[bytes] = set()
        for attempt in range(_ATTEMPTS):
            parts = await self._placed(list(waiting.values()), why)
            final = await asyncio.gather(*(
                self._ask(replica, part, waiting, resend, results, why, attempt + 1 == _ATTEMPTS)
                for replica, part in parts.items()
            ))  # fmt: skip
            if not waiting or any(final):
                return
            if not resend or attempt:
                await asyncio.sleep(_BACKOFF_S * 2**attempt * random.uniform(0.75, 1.25))

    async def _placed(self, requests: list[Request], why: list[str]) -> dict[Replica, list[Request]]:
        """Requests by the replica they go to; those that no replica can take now are left out."""
        parts: dict[Replica, list[Request]] = {}
        for request in requests:
            session = request.session_id if isinstance(request, ExecRequest) else None
            home = before = self._homes.get(session) if session is not None else None
            if home is None or (session not in self._opened and (home.down_until > time.monotonic() or not home.name)):
                home = await self._roomiest(why)
                if home is None:
                    continue
                if session is not None and self._homes.get(session) is not before:
                    home = self._homes[session]  # another batch with this session was first
                elif session is not None:
                    home.opened += 1
                    self._homes[session], self._names[session] = home, f"{session}@{home.name}"
            parts.setdefault(home, []).append(request)
        return parts

    async def _roomiest(self, why: list[str]) -> Replica | None:
        """The replica with the most room among those that answer."""
        now = time.monotonic()
        replicas = await self.replicas()
        if len(replicas) == 1 and replicas[0].name:
            return replicas[0]
        candidates = [r for r in replicas if r.down_until <= now] if len(replicas) > 1 else replicas

        async def ask(replica: Replica) -> Replica | None:
            try:
                await replica.refresh()
            except grpc.aio.AioRpcError as error:
                why.append(f"{replica.address}: {_said(error)}")
                replica.failed()
                return None
            return replica

        answered = [r for r in await asyncio.gather(*map(ask, candidates)) if r is not None]
        return min(answered, key=lambda r: (r.load, random.random()), default=None)

    async def _ask(
        self, replica: Replica, requests: list[Request], waiting: dict[str, Request], resend: set[bytes],
        results: asyncio.Queue, why: list[str], last: bool,
    ) -> bool:  # fmt: skip
        """One call; answers leave ``waiting``. True if asking again is no use."""
        cells = [r for r in requests if isinstance(r, ExecRequest)]
        wire = {r.request_id: (self._names[r.session_id], r.session_id in self._opened) for r in cells}
        try:
            async for reply in replica.call(requests, wire, resend, self._format, self._within_s):
                request = waiting.get(reply.request_id)
                if request is None:
                    continue
                if reply.status == pb.MISSING_IMAGES:
                    resend.update(reply.missing_digests)
                    why.append("the service lost the pictures")
                elif reply.status == pb.UNAVAILABLE and not last:
                    why.append(reply.message)
                elif reply.status == pb.SESSION_LOST and not wire[reply.request_id][1] and not last:
                    replica.forget_name()  # nothing was lost yet: the replica was restarted before our first cell
                else:
                    del waiting[reply.request_id]
                    results.put_nowait(self._learned(request, messages.read_result(request, reply)))
        except grpc.aio.AioRpcError as error:
            why.append(_said(error))
            if error.code() in _FINAL:
                return True
            replica.failed()
        return False

    def _learned(self, request: Request, result: ToolResult) -> ToolResult:
        if isinstance(request, ExecRequest):
            if result.status is Status.SESSION_LOST:
                self._forget(request.session_id)
            elif result.status not in (Status.REFUSED, Status.UNAVAILABLE):
                self._opened.add(request.session_id)
        return result

    def _lost(self, request: Request, why: str) -> ToolResult:
        """The result of a request that nobody answered. State on a replica that is gone is lost."""
        if isinstance(request, ExecRequest) and request.session_id in self._opened and len(self._replicas) > 1:
            home = self._homes[request.session_id]
            if home.down_until > time.monotonic():
                self._forget(request.session_id)
                return messages.failure(request, Status.SESSION_LOST, f"its replica {home.address} is gone: {why}")
        return messages.failure(request, Status.UNAVAILABLE, why)

    def _forget(self, session: str) -> None:
        self._opened.discard(session)
        self._homes.pop(session, None)
        self._names.pop(session, None)


def _said(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
