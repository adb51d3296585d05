"""The client of the tools service: thread-safe, synchronous to its user, asynchronous underneath.

A request ends with exactly one ``ToolResult``. A broken connection is tried again: the service executes a
request id at most once, so asking again is safe. What a tool did wrong and what the infrastructure did wrong
are told apart by ``Status``: after TIMEOUT, OOM or CRASHED the session's next cell runs in a fresh namespace,
pictures bound again, and says ``restarted=True``; SESSION_LOST and UNAVAILABLE mean that nothing was
executed and nobody's code is to blame.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import json
import queue
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import grpc

from tools_service.local import LocalService, start_local_service
from tools_service.proto import tools_pb2 as pb
from tools_service.proto import tools_pb2_grpc

__all__ = [
    "ExecRequest", "ImageSearchRequest", "LocalService", "SearchItem", "Status", "TextSearchRequest", "ToolResult",
    "ToolsClient", "start_local_service",
]  # fmt: skip

_MAX_MESSAGE = 64 << 20
_BATCH_BYTES = 32 << 20  # a batch is cut so that its pictures stay below this
_BATCH_ITEMS = 1024
_ATTEMPTS = 4
_BACKOFF_S = 0.3
_LONGEST_S = 3600.0  # of one cell, when a deadline is computed: the service refuses more anyway
_SPARE_S = 60.0  # beyond a cell's own time-out: queues, session start, transfer

Kind = Literal["exec", "text_search", "image_search"]


class Status(enum.Enum):
    OK = "ok"
    ERROR = "error"  # the code raised
    TIMEOUT = "timeout"
    OOM = "oom"
    CRASHED = "crashed"
    OUTPUT_LIMIT = "output_limit"
    SESSION_LOST = "session_lost"  # not executed: the state that the code counted on is gone
    REFUSED = "refused"  # not executed: the request is wrong
    UNAVAILABLE = "unavailable"  # infrastructure; may be tried again


@dataclass(frozen=True)
class ExecRequest:
    request_id: str
    session_id: str
    code: str
    timeout_s: float
    images: tuple[bytes, ...] = ()  # encoded input pictures; bound to image_1 .. image_n when the session is created


@dataclass(frozen=True)
class TextSearchRequest:
    request_id: str
    query: str
    k: int


@dataclass(frozen=True)
class ImageSearchRequest:
    request_id: str
    image: bytes
    k: int


Request = ExecRequest | TextSearchRequest | ImageSearchRequest


@dataclass(frozen=True)
class SearchItem:
    title: str
    url: str
    snippet: str
    date: str
    thumbnail: bytes | None  # PNG


@dataclass(frozen=True)
class ToolResult:
    request_id: str
    kind: Kind
    status: Status
    stdout: str = ""
    stderr: str = ""
    images: tuple[bytes, ...] = ()  # PNG
    items: tuple[SearchItem, ...] = ()
    message: str = ""
    restarted: bool = False  # this cell ran in a fresh namespace after an earlier one was lost
    queue_ms: float = 0.0
    wall_ms: float = 0.0


class ToolsClient:
    """Submits requests and collects results in order of completion. All methods may be called from any thread."""

    def __init__(self, address: str, token: str | None = None):
        """``address``: host:port. Connects lazily; the first result says UNAVAILABLE if nobody is there."""
        self.address = address
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._results: queue.SimpleQueue[ToolResult] = queue.SimpleQueue()
        self._pending = 0
        self._count = threading.Lock()
        self._opened: set[str] = set()  # sessions in which a cell of ours has run
        self._known: set[bytes] = set()  # digests that the service has been given
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tools-client", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()

    async def _connect(self) -> None:
        self._channel = grpc.aio.insecure_channel(
            self.address,
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE),
                ("grpc.max_send_message_length", _MAX_MESSAGE),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self._stub = tools_pb2_grpc.ToolsStub(self._channel)

    def submit(self, requests: Sequence[Request]) -> None:
        """Sends requests; every one of them yields exactly one result from ``poll``. Does not wait."""
        if self._closed:
            raise RuntimeError("the client is closed")
        cells = [r for r in requests if isinstance(r, ExecRequest)]
        searches = [r for r in requests if not isinstance(r, ExecRequest)]
        with self._count:
            self._pending += len(requests)
        for batch in _cut(cells):
            asyncio.run_coroutine_threadsafe(self._run_batch(batch), self._loop)
        for batch in _cut(searches):
            asyncio.run_coroutine_threadsafe(self._run_batch(batch), self._loop)

    def poll(self, timeout_s: float = 0.0) -> list[ToolResult]:
        """Results that have arrived, in order of completion; waits up to ``timeout_s`` for the first."""
        results: list[ToolResult] = []
        try:
            results.append(self._results.get(block=timeout_s > 0, timeout=timeout_s or None))
            while True:
                results.append(self._results.get_nowait())
        except queue.Empty:
            pass
        with self._count:
            self._pending -= len(results)
        return results

    def pending(self) -> int:
        """Requests submitted whose results have not been polled."""
        with self._count:
            return self._pending

    def close_sessions(self, ids: Iterable[str]) -> None:
        """Ends sessions, without waiting. Unknown ones are ignored."""
        ids = list(ids)
        self._opened.difference_update(ids)

        async def close() -> None:
            try:
                await self._stub.CloseSessions(
                    pb.CloseSessionsRequest(session_ids=ids), metadata=self._metadata, timeout=10
                )
            except grpc.aio.AioRpcError:
                pass  # they expire by themselves

        if ids and not self._closed:
            asyncio.run_coroutine_threadsafe(close(), self._loop)

    def interrupt(self, session_id: str) -> bool:
        """Interrupts the running cell of a session; False if none is running."""

        async def interrupt() -> bool:
            return (
                await self._stub.Interrupt(
                    pb.InterruptRequest(session_id=session_id), metadata=self._metadata, timeout=10
                )
            ).interrupted

        return asyncio.run_coroutine_threadsafe(interrupt(), self._loop).result()

    def info(self) -> dict:
        """Tier, limits, providers, packages and counters of the service. Raises ConnectionError."""

        async def ask() -> str:
            return (
                await self._stub.GetInfo(pb.GetInfoRequest(), metadata=self._metadata, timeout=10, wait_for_ready=True)
            ).json

        try:
            return json.loads(asyncio.run_coroutine_threadsafe(ask(), self._loop).result())
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(f"tools service at {self.address}: {error.code().name}: {error.details()}") from None

    def close(self) -> None:
        """Ends the connection; results that have not arrived are lost."""
        if self._closed:
            return
        self._closed = True

        async def finish() -> None:
            await self._channel.close()
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(finish(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    # On the loop's thread

    async def _run_batch(self, batch: list[Request]) -> None:
        """Asks until every request of the batch has its answer, or the attempts are used up."""
        waiting = {request.request_id: request for request in batch}
        resend: set[bytes] = set()
        why = "no answer"
        for attempt in range(_ATTEMPTS):
            try:
                async for reply in self._call(list(waiting.values()), resend):
                    request = waiting.get(reply.request_id)
                    if request is None:
                        continue
                    if reply.status == pb.MISSING_IMAGES:
                        resend.update(reply.missing_digests)
                        why = "the service lost the pictures"
                    elif reply.status == pb.UNAVAILABLE and attempt + 1 < _ATTEMPTS:
                        why = reply.message
                    else:
                        del waiting[reply.request_id]
                        self._deliver(request, reply)
            except grpc.aio.AioRpcError as error:
                why = f"{error.code().name}: {error.details()}"
                if error.code() in (
                    grpc.StatusCode.UNAUTHENTICATED,
                    grpc.StatusCode.INVALID_ARGUMENT,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                ):
                    break
            except Exception as error:  # a request that cannot be put on the wire must still get its answer
                why = f"{type(error).__name__}: {error}"
                break
            if not waiting:
                return
            if not resend or attempt:
                await asyncio.sleep(_BACKOFF_S * 2**attempt)
        for request in waiting.values():
            self._results.put(ToolResult(request.request_id, _kind(request), Status.UNAVAILABLE, message=why))

    def _call(self, requests: list[Request], resend: set[bytes]) -> grpc.aio.UnaryStreamCall:
        if isinstance(requests[0], ExecRequest):
            # Cells of one session run one after the other, so their times add up.
            deadline = sum(min(r.timeout_s, _LONGEST_S) for r in requests if r.timeout_s > 0) + _SPARE_S
            return self._stub.BatchExec(self._cells(requests, resend), metadata=self._metadata, timeout=deadline)
        message = pb.BatchSearchRequest()
        for request in requests:
            item = message.items.add(request_id=request.request_id, k=request.k)
            if isinstance(request, TextSearchRequest):
                item.text.query = request.query
            else:
                item.image.image = request.image
        return self._stub.BatchSearch(message, metadata=self._metadata, timeout=_SPARE_S)

    def _cells(self, requests: list[ExecRequest], resend: set[bytes]) -> pb.BatchExecRequest:
        message = pb.BatchExecRequest()
        included: set[bytes] = set()
        for request in requests:
            known = request.session_id in self._opened
            digests = [_digest(image) for image in request.images]
            message.items.add(
                request_id=request.request_id, session_id=request.session_id, code=request.code, timeout_s=request.timeout_s,
                image_digests=digests, expects_state=known,
            )  # fmt: skip
            for digest, image in zip(digests, request.images, strict=True):
                if digest not in included and (digest not in self._known or digest in resend):
                    included.add(digest)
                    message.images.append(image)
        self._known |= included
        return message

    def _deliver(self, request: Request, reply: pb.Result) -> None:
        status = Status[pb.Status.Name(reply.status)]
        if isinstance(request, ExecRequest):
            if status is Status.SESSION_LOST:
                self._opened.discard(request.session_id)
            elif status not in (Status.REFUSED, Status.UNAVAILABLE):
                self._opened.add(request.session_id)
        items = tuple(SearchItem(i.title, i.url, i.snippet, i.date, i.thumbnail or None) for i in reply.items)
        self._results.put(
            ToolResult(
                reply.request_id,
                _kind(request),
                status,
                reply.stdout,
                reply.stderr,
                tuple(reply.images),
                items,
                reply.message,
                reply.restarted,
                reply.queue_ms,
                reply.wall_ms,
            )  # fmt: skip
        )


def _kind(request: Request) -> Kind:
    if isinstance(request, ExecRequest):
        return "exec"
    return "text_search" if isinstance(request, TextSearchRequest) else "image_search"


def _digest(image: bytes) -> bytes:
    return hashlib.sha256(image).digest()


def _cut(requests: list[Request]) -> Iterable[list[Request]]:
    """Batches that stay below the service's limits on items and, counting each picture once, on bytes."""
    batch: list[Request] = []
    seen: set[int] = set()
    size = 0
    for request in requests:
        pictures = (
            request.images if isinstance(request, ExecRequest) else getattr(request, "image", b"") and (request.image,)
        )
        fresh = [p for p in pictures or () if id(p) not in seen]
        if len(batch) == _BATCH_ITEMS or (batch and size + sum(map(len, fresh)) > _BATCH_BYTES):
            yield batch
            batch, seen, size = [], set(), 0
            fresh = list(pictures or ())
        batch.append(request)
        seen.update(map(id, fresh))
        size += sum(map(len, fresh))
    if batch:
        yield batch
