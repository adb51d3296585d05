"""The asyncio client: assigns sessions to replicas, sends batches with retries, yields one result per request."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Literal

import grpc

from tools_service.client import messages
from tools_service.client.messages import ExecRequest, Request, Status, ToolResult
from tools_service.client.replicas import Replica, Tls, resolve_addresses
from tools_service.client.request_batch import Batch
from tools_service.proto import tools_pb2 as pb

_ATTEMPTS = 4
_BACKOFF_S = 0.3
_FATAL_CODES = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class AsyncToolsClient:
    """Client of one or several replicas; bound to the event loop that first uses it.

    A session is opened on the least loaded replica and stays there. When its replica ends, the session is
    reported as lost; sessions without a cell yet, and searches, are sent to another replica.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        token: str | None = None,
        tls: Tls | None = None,
        image_format: Literal["png", "webp"] = "png",
        request_timeout_s: float = float("inf"),
    ):
        """Does not connect yet.

        Args:
            addresses: host:port of each replica, comma-separated or as a sequence.
            request_timeout_s: time limit of a request with its retries, after which it ends as UNAVAILABLE.
        """
        self._addresses, self._token, self._tls = addresses, token, tls
        self._format, self._request_timeout_s = image_format, request_timeout_s
        self._replicas: list[Replica] = []
        self._connecting: asyncio.Lock | None = None
        self._session_replica: dict[str, Replica] = {}  # by session id
        self._wire_ids: dict[str, str] = {}  # session id → its id on the wire, which names the replica
        self._started_sessions: set[str] = set()  # sessions in which a cell has run: their state can be lost

    async def replicas(self) -> list[Replica]:
        """Returns the replicas, resolved at the first call. Raises ValueError (address) or OSError (certificate)."""
        if not self._replicas:
            self._connecting = self._connecting or asyncio.Lock()
            async with self._connecting:
                if not self._replicas:
                    found = await resolve_addresses(self._addresses)
                    self._replicas = [Replica(address, name, self._token, self._tls) for address, name in found]
        return self._replicas

    async def run(self, requests: Sequence[Request]) -> AsyncIterator[ToolResult]:
        """Yields exactly one result per request, in order of completion. Cells of one session run in order.

        A request that cannot be put on the wire is REFUSED by itself, before anything is sent.
        """
        results: asyncio.Queue[ToolResult] = asyncio.Queue()
        sendable = []
        for request in requests:
            if fault := messages.find_fault(request):
                results.put_nowait(messages.failed_result(request, Status.REFUSED, fault))
            else:
                sendable.append(request)
        cells = [r for r in sendable if isinstance(r, ExecRequest)]
        searches = [r for r in sendable if not isinstance(r, ExecRequest)]
        batches = [*messages.split_batches(cells), *messages.split_batches(searches)]
        tasks = [asyncio.create_task(self._run_batch(Batch(batch, results))) for batch in batches]
        try:
            for _ in requests:
                yield await results.get()
        finally:
            for task in tasks:
                task.cancel()

    async def close_sessions(self, ids: Iterable[str]) -> None:
        """Ends sessions. Unknown ids are ignored."""
        by_replica: dict[Replica, list[str]] = {}
        for session in ids:
            replica, name = self._session_replica.pop(session, None), self._wire_ids.pop(session, session)
            self._started_sessions.discard(session)
            if replica is not None:
                by_replica.setdefault(replica, []).append(name)
        for replica, names in by_replica.items():
            await replica.close_sessions(names)

    async def interrupt(self, session: str) -> bool:
        """Interrupts the running cell of a session; returns False if none runs. Raises AioRpcError."""
        replica = self._session_replica.get(session)
        return replica is not None and await replica.interrupt(self._wire_ids[session])

    async def info(self) -> dict:
        """Returns tier, limits, providers, packages and counters of the first replica that answers.

        Raises:
            AioRpcError: none answers.
        """
        *others, last = await self.replicas()
        for replica in others:
            try:
                return await replica.info(wait=False)
            except grpc.aio.AioRpcError:
                continue
        return await last.info()

    async def close(self) -> None:
        for replica in self._replicas:
            await replica.close()

    # One batch

    async def _run_batch(self, batch: Batch) -> None:
        """Sends the batch until every request has a result, or the attempts or the time are used up."""
        try:
            async with asyncio.timeout(self._request_timeout_s if self._request_timeout_s < float("inf") else None):
                await self._run_attempts(batch)
        except TimeoutError:
            batch.last_error = f"no answer within {self._request_timeout_s:g} s ({batch.last_error})"
        except Exception as error:  # an error of this client must not leave requests without a result
            batch.last_error = f"{type(error).__name__}: {error}"
        for request in batch.waiting:
            batch.finish(self._undelivered(request, batch.last_error))

    async def _run_attempts(self, batch: Batch) -> None:
        for attempt in range(_ATTEMPTS):
            parts = await self._route(batch)
            last = attempt + 1 == _ATTEMPTS
            final = await asyncio.gather(*(self._send(batch, replica, part, last) for replica, part in parts.items()))
            if not batch.waiting or any(final):
                return
            if not batch.missing_digests or attempt:
                await asyncio.sleep(_BACKOFF_S * 2**attempt * random.uniform(0.75, 1.25))

    async def _route(self, batch: Batch) -> dict[Replica, list[Request]]:
        """Groups the waiting requests by replica; those for which no replica is available now are left out."""
        parts: dict[Replica, list[Request]] = {}
        for request in batch.waiting:
            session = request.session_id if isinstance(request, ExecRequest) else None
            replica = before = self._session_replica.get(session) if session is not None else None
            if replica is None or (
                session not in self._started_sessions and (replica.down_until > time.monotonic() or not replica.name)
            ):
                replica = await self._least_loaded(batch)
                if replica is None:
                    continue
                if session is not None and self._session_replica.get(session) is not before:
                    replica = self._session_replica[session]  # another batch with this session was first
                elif session is not None:
                    replica.new_sessions += 1
                    self._session_replica[session], self._wire_ids[session] = replica, f"{session}@{replica.name}"
            parts.setdefault(replica, []).append(request)
        return parts

    async def _least_loaded(self, batch: Batch) -> Replica | None:
        """Returns the least loaded replica that responds; None if none does."""
        now = time.monotonic()
        replicas = await self.replicas()
        if len(replicas) == 1 and replicas[0].name:
            return replicas[0]
        candidates = [r for r in replicas if r.down_until <= now] if len(replicas) > 1 else replicas

        async def refreshed(replica: Replica) -> Replica | None:
            try:
                await replica.refresh()
            except grpc.aio.AioRpcError as error:
                batch.last_error = f"{replica.address}: {_format_error(error)}"
                replica.mark_down()
                return None
            return replica

        answered = [r for r in await asyncio.gather(*map(refreshed, candidates)) if r is not None]
        return min(answered, key=lambda r: (r.load, random.random()), default=None)

    async def _send(self, batch: Batch, replica: Replica, requests: list[Request], last: bool) -> bool:
        """Makes one call with these requests of the batch. Returns True if a retry is useless."""
        cells = [r for r in requests if isinstance(r, ExecRequest)]
        wire_ids = {r.request_id: (self._wire_ids[r.session_id], r.session_id in self._started_sessions) for r in cells}
        try:
            async for reply in replica.send_batch(
                requests, wire_ids, batch.missing_digests, self._format, self._request_timeout_s
            ):
                request = batch.find(reply.request_id)
                if request is None:
                    continue
                if reply.status == pb.MISSING_IMAGES:
                    batch.missing_digests.update(reply.missing_digests)
                    batch.last_error = "the service no longer holds the images"
                elif reply.status == pb.UNAVAILABLE and not last:
                    batch.last_error = reply.message
                elif reply.status == pb.SESSION_LOST and not wire_ids[reply.request_id][1] and not last:
                    replica.forget_name()  # no state is lost: the replica was restarted before the first cell of the session
                else:
                    batch.finish(self._record_result(request, messages.from_proto(request, reply)))
        except grpc.aio.AioRpcError as error:
            batch.last_error = _format_error(error)
            if error.code() in _FATAL_CODES:
                return True
            replica.mark_down()
        return False

    def _record_result(self, request: Request, result: ToolResult) -> ToolResult:
        if isinstance(request, ExecRequest):
            if result.status is Status.SESSION_LOST:
                self._forget_session(request.session_id)
            elif result.status not in (Status.REFUSED, Status.UNAVAILABLE):
                self._started_sessions.add(request.session_id)
        return result

    def _undelivered(self, request: Request, error: str) -> ToolResult:
        """Returns the result of a request without an answer: SESSION_LOST if its session's replica is down."""
        if (
            isinstance(request, ExecRequest)
            and request.session_id in self._started_sessions
            and len(self._replicas) > 1
        ):
            replica = self._session_replica[request.session_id]
            if replica.down_until > time.monotonic():
                self._forget_session(request.session_id)
                return messages.failed_result(
                    request, Status.SESSION_LOST, f"its replica {replica.address} is gone: {error}"
                )
        return messages.failed_result(request, Status.UNAVAILABLE, error)

    def _forget_session(self, session: str) -> None:
        self._started_sessions.discard(session)
        self._session_replica.pop(session, None)
        self._wire_ids.pop(session, None)


def _format_error(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
