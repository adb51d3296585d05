"""The gRPC server: requests in, answers out. It never forks and runs no untrusted code."""

from __future__ import annotations

import asyncio
import collections
import json
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tools_service import __version__
from tools_service.common import logs
from tools_service.proto import tools_pb2 as pb
from tools_service.proto import tools_pb2_grpc
from tools_service.sandbox.manager.manager_client import Host
from tools_service.search.service import Providers
from tools_service.server import auth
from tools_service.server.admission import Lanes
from tools_service.server.image_store import PictureStore
from tools_service.server.options import Options
from tools_service.server.result_cache import Answers
from tools_service.server.server_metrics import Metrics
from tools_service.server.sessions import Caller, Sessions
from tools_service.server.tracing import Tracing

MAX_MESSAGE = 64 << 20
_NAME = pb.DESCRIPTOR.services_by_name["Tools"].full_name
_ID = re.compile(r"[A-Za-z0-9._:/@+=-]{1,200}")
_ABANDONED_S = 2.0  # after its caller vanished, a cell is left so long for somebody to ask again
_MAX_ITEMS = 4096
_MAX_QUERY = 4096


class Refusal(Exception):
    """The request is wrong; the text says what."""


class Tools(tools_pb2_grpc.ToolsServicer):
    """The service of tools.proto."""

    def __init__(
        self, options: Options, host: Host | None, sessions: Sessions | None, providers: Providers, lanes: Lanes
    ):
        self._options, self._host, self._sessions, self._providers = options, host, sessions, providers
        self._answers, self._pictures, self._lanes = Answers(), PictureStore(), lanes
        self.replica = f"{options.replica}-{secrets.token_hex(4)}"
        self.metrics, self.tracing = self._measure(), Tracing.open(options.traces)
        self._started = time.time()
        self._abandoned = 0
        self._stopping: set[asyncio.Task] = set()
        self.draining = False

    async def Exec(self, request: pb.ExecRequest, context: grpc.aio.ServicerContext) -> pb.Result:
        caller = _caller(context)
        self._learn(request.images, caller)
        async for result in self._stream("exec", [request], self._cell, caller, context):
            return result

    async def BatchExec(
        self, request: pb.BatchExecRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Result]:
        await self._check_size(len(request.items), context)
        caller = _caller(context)
        self._learn(request.images, caller)
        for item in request.items:
            self._learn(item.images, caller)
        async for result in self._stream("exec", request.items, self._cell, caller, context):
            yield result

    async def BatchSearch(
        self, request: pb.BatchSearchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Result]:
        await self._check_size(len(request.items), context)
        async for result in self._stream("search", request.items, self._search, _caller(context), context):
            yield result

    async def Interrupt(self, request: pb.InterruptRequest, context: grpc.aio.ServicerContext) -> pb.InterruptReply:
        running = self._sessions is not None and self._sessions.interrupt(request.session_id, auth.principal(context))
        return pb.InterruptReply(interrupted=running)

    async def CloseSessions(
        self, request: pb.CloseSessionsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CloseSessionsReply:
        if self._sessions is None:
            return pb.CloseSessionsReply()
        principal = auth.principal(context)
        return pb.CloseSessionsReply(closed=sum(self._sessions.close(id_, principal) for id_ in request.session_ids))

    async def GetInfo(self, request: pb.GetInfoRequest, context: grpc.aio.ServicerContext) -> pb.Info:
        info = self.info()
        return pb.Info(version=__version__, tier=info["tier"], json=json.dumps(info))

    def info(self) -> dict:
        """What this service is and holds, as plain data."""
        sandbox = self._host.info if self._host else {}
        plan = sandbox.get("plan", {})
        return {
            "version": __version__,
            "replica": self.replica,
            "tier": plan.get("tier", "no sandbox"),
            "isolation": sandbox.get("summary", ""),
            "limits": plan.get("limits", {}),
            "packages": sandbox.get("packages", {}),
            "providers": self._providers.names(),
            "search": self._providers.state(),
            "runtime_dir": plan.get("runtime_dir", ""),
            "max_sessions": self._options.max_sessions,
            "sessions": 0 if self._sessions is None else len(self._sessions),
            "running": self._lanes.running,
            "waiting": 0 if self._sessions is None else self._sessions.waiting,
            "draining": self.draining,
            "counters": self._counters(),
            "uptime_s": time.time() - self._started,
        }

    def _counters(self) -> dict[str, int]:
        return ({} if self._sessions is None else self._sessions.counters) | {"abandoned": self._abandoned}

    def _measure(self) -> Metrics:
        metrics = Metrics()
        metrics.gauge(
            "tools_sessions", "Sessions that live", lambda: 0 if self._sessions is None else len(self._sessions)
        )
        metrics.gauge("tools_cells_running", "Cells that run", lambda: self._lanes.running)
        metrics.gauge(
            "tools_cells_waiting",
            "Cells that wait or run",
            lambda: 0 if self._sessions is None else self._sessions.waiting,
        )
        events = ("cells", "opened", "expired", "evicted", "killed", "abandoned")
        metrics.counters("tools_events", "What happened since the start", self._counters, events)
        return metrics

    async def housekeeping(self) -> None:
        """Ends idle sessions, as long as the service lives."""
        if self._sessions is not None:
            await self._sessions.look_after()

    async def drain(self) -> None:
        """Refuses new requests and waits for those under way."""
        self.draining = True
        await self._answers.drain(self._options.drain_s)

    async def close(self) -> None:
        """Ends the connections of search providers, and sends the last spans."""
        await self._providers.close()
        await asyncio.to_thread(self.tracing.close)

    # One item

    def _cell(self, request: pb.ExecRequest, caller: Caller) -> Callable[[], Coroutine[None, None, pb.Result]]:
        async def execute() -> pb.Result:
            self._check_cell(request)
            held = [self._pictures.get(caller.principal, digest) for digest in request.image_digests]
            missing = [d for d, data in zip(request.image_digests, held, strict=True) if data is None]
            if missing:
                return pb.Result(request_id=request.request_id, status=pb.MISSING_IMAGES, missing_digests=missing)
            return await self._sessions.execute(request, held, caller)

        return execute

    def _check_cell(self, request: pb.ExecRequest) -> None:
        limits = self._options.limits
        if self._sessions is None:
            raise Refusal("this service runs without a sandbox")
        if not _ID.fullmatch(request.session_id):
            raise Refusal(f"session id {request.session_id[:80]!r} must match {_ID.pattern}")
        if len(request.code.encode("utf-8", "replace")) > limits.code_kb << 10:
            raise Refusal(f"the code has {len(request.code)} characters; the limit is {limits.code_kb} KB")
        if not 0 <= request.timeout_s <= limits.max_timeout_s:
            raise Refusal(f"timeout_s {request.timeout_s:g} must lie between 0 and {limits.max_timeout_s:g}")
        if len(request.image_digests) > limits.input_images:
            raise Refusal(f"{len(request.image_digests)} pictures; the limit is {limits.input_images}")

    def _search(self, request: pb.SearchRequest, _: Caller) -> Callable[[], Coroutine[None, None, pb.Result]]:
        async def execute() -> pb.Result:
            kind = request.WhichOneof("query")
            if kind is None:
                raise Refusal("a search needs a text or an image")
            if not 1 <= request.k <= 100:
                raise Refusal(f"k {request.k} must lie between 1 and 100")
            if kind == "text" and len(request.text.query) > _MAX_QUERY:
                raise Refusal(f"the query has {len(request.text.query)} characters; the limit is {_MAX_QUERY}")
            if kind == "image" and len(request.image.image) > self._options.limits.input_image_mb << 20:
                raise Refusal(f"the picture has more than {self._options.limits.input_image_mb} MB")
            return await self._providers.search(request)

        return execute

    # Batches

    async def _stream(
        self, kind: str, items, make: Callable, caller: Caller, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Result]:
        """Answers in order of completion; cells whose caller vanished are stopped after a while."""
        started, statuses = time.monotonic(), collections.Counter()
        with self.tracing.span(kind, context.invocation_metadata()) as attributes:
            tasks = [asyncio.create_task(self._once(kind, item, make(item, caller), caller)) for item in items]
            try:
                for next_done in asyncio.as_completed(tasks):
                    result = await next_done
                    statuses[pb.Status.Name(result.status)] += 1
                    yield result
            finally:
                left = sum(not task.done() for task in tasks)
                if left:
                    for task in tasks:
                        task.cancel()
                    loop = asyncio.get_running_loop()
                    for item in items:
                        loop.call_later(_ABANDONED_S, self._abandon, item, caller)
                attributes.update(items=len(tasks), abandoned=left, **statuses)
                seconds = round(time.monotonic() - started, 4)
                logs.event(kind, items=len(tasks), abandoned=left, statuses=dict(statuses), seconds=seconds)

    async def _once(
        self, kind: str, item: pb.ExecRequest | pb.SearchRequest, execute: Callable, caller: Caller
    ) -> pb.Result:
        if isinstance(item, pb.ExecRequest) and item.session_id.partition("@")[2] not in ("", self.replica):
            # Not kept as this request's answer: its caller may ask again with a session of ours.
            message = "the session belongs to another replica, or to this one before it was restarted"
            result = pb.Result(request_id=item.request_id, status=pb.SESSION_LOST, message=message)
        else:
            result = await self._answer(item.request_id, execute, caller)
        self.metrics.answered(kind, result)
        return result

    async def _answer(self, request_id: str, execute: Callable, caller: Caller) -> pb.Result:
        started = time.monotonic()
        if not _ID.fullmatch(request_id):
            return pb.Result(request_id=request_id, status=pb.REFUSED, message=f"request id must match {_ID.pattern}")
        if self.draining:
            return pb.Result(request_id=request_id, status=pb.UNAVAILABLE, message="the service is shutting down")

        async def checked() -> pb.Result:
            try:
                return await execute()
            except Refusal as refusal:
                return pb.Result(request_id=request_id, status=pb.REFUSED, message=str(refusal))

        result = await self._answers.once(caller.key(request_id), request_id, checked)
        if not result.wall_ms:
            result.wall_ms = (time.monotonic() - started) * 1e3
        return result

    def _abandon(self, item: pb.ExecRequest | pb.SearchRequest, caller: Caller) -> None:
        def interrupt() -> bool:
            if self._sessions is None or not isinstance(item, pb.ExecRequest):
                return False
            return self._sessions.interrupt(item.session_id, caller.principal, item.request_id)

        async def stop() -> None:
            grace = self._options.limits.grace_s
            self._abandoned += await self._answers.stop(caller.key(item.request_id), interrupt, grace)

        task = asyncio.ensure_future(stop())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def _learn(self, pictures, caller: Caller) -> None:
        limit = self._options.limits.input_image_mb << 20
        for data in pictures:
            if len(data) <= limit:
                self._pictures.add(caller.principal, data)

    async def _check_size(self, items: int, context: grpc.aio.ServicerContext) -> None:
        if items > _MAX_ITEMS:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"{items} items in a batch; the limit is {_MAX_ITEMS}"
            )


def _caller(context: grpc.aio.ServicerContext) -> Caller:
    left = context.time_remaining()
    return Caller(auth.principal(context), math.inf if left is None else time.monotonic() + left)


@dataclass(frozen=True)
class Running:
    """A service that listens, and its parts."""

    server: grpc.aio.Server
    port: int
    tools: Tools
    host: Host | None
    checks: health.aio.HealthServicer


async def build(options: Options) -> Running:
    """Starts everything. Raises SandboxUnavailable, ValueError for a bad index, OSError for a bad certificate."""
    host = sessions = starting = None
    lanes = Lanes(options.cells, options.slow_cells)
    credentials = auth.server_credentials(options)
    if not options.no_sandbox:
        host = Host(
            options.limits, options.packages, warm=options.warm, slots=options.max_sessions + options.warm + 32,
            tier=options.tier, insecure=options.insecure,
        )  # fmt: skip
        starting = asyncio.create_task(host.start())
        await asyncio.sleep(0)  # the manager starts now, and loads libraries while we open indexes
        sessions = Sessions(host, options, lanes)
    try:
        providers = await asyncio.to_thread(Providers.open, options.search)
        if starting is not None:
            await starting
    except BaseException:
        if host is not None:
            await host.close()
        raise
    server = grpc.aio.server(
        interceptors=[auth.TokenCheck(options.tokens)] if options.tokens else [],
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.max_concurrent_streams", 256),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 3),
            ("grpc.keepalive_time_ms", 60_000),  # a caller that vanished without a word is noticed
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.so_reuseport", 0),
        ],
    )
    tools = Tools(options, host, sessions, providers, lanes)
    tools_pb2_grpc.add_ToolsServicer_to_server(tools, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    if options.reflection:
        reflection.enable_server_reflection((_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"{options.host}:{options.port}"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    for name in ("", _NAME):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    if options.metrics_port:
        tools.metrics.serve(options.host, options.metrics_port)
    return Running(server, port, tools, host, checks)
