"""The gRPC server: requests in, answers out. It never forks and runs no untrusted code."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tools_service import __version__
from tools_service.admission import Lanes
from tools_service.answers import Answers
from tools_service.options import Options
from tools_service.pictures import PictureStore
from tools_service.proto import tools_pb2 as pb
from tools_service.proto import tools_pb2_grpc
from tools_service.sandbox.host import Host
from tools_service.search.provider import Providers
from tools_service.sessions import Sessions

MAX_MESSAGE = 64 << 20
_ID = re.compile(r"[A-Za-z0-9._:/@+=-]{1,200}")
_ABANDONED_S = 5.0  # after its caller vanished, a cell is left so long for somebody to ask again
_MAX_ITEMS = 4096
_MAX_QUERY = 4096


class Refusal(Exception):
    """The request is wrong; the text says what."""


class Tools(tools_pb2_grpc.ToolsServicer):
    """The service of tools.proto."""

    def __init__(self, options: Options, host: Host | None, sessions: Sessions | None, providers: Providers):
        self._options, self._host, self._sessions, self._providers = options, host, sessions, providers
        self._answers, self._pictures = Answers(), PictureStore()
        self._started = time.time()
        self._abandoned = 0
        self.draining = False

    async def Exec(self, request: pb.ExecRequest, context: grpc.aio.ServicerContext) -> pb.Result:
        self._learn(request.images)
        async for result in self._stream([(request.request_id, self._cell(request))]):
            return result

    async def BatchExec(
        self, request: pb.BatchExecRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Result]:
        await self._check_size(len(request.items), context)
        self._learn(request.images)
        for item in request.items:
            self._learn(item.images)
        async for result in self._stream([(item.request_id, self._cell(item)) for item in request.items]):
            yield result

    async def BatchSearch(
        self, request: pb.BatchSearchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Result]:
        await self._check_size(len(request.items), context)
        async for result in self._stream([(item.request_id, self._search(item)) for item in request.items]):
            yield result

    async def Interrupt(self, request: pb.InterruptRequest, context: grpc.aio.ServicerContext) -> pb.InterruptReply:
        return pb.InterruptReply(
            interrupted=self._sessions is not None and self._sessions.interrupt(request.session_id)
        )

    async def CloseSessions(
        self, request: pb.CloseSessionsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CloseSessionsReply:
        closed = sum(self._sessions.close(session_id) for session_id in request.session_ids) if self._sessions else 0
        return pb.CloseSessionsReply(closed=closed)

    async def GetInfo(self, request: pb.GetInfoRequest, context: grpc.aio.ServicerContext) -> pb.Info:
        info = self.info()
        return pb.Info(version=__version__, tier=info["tier"], json=json.dumps(info))

    def info(self) -> dict:
        """What this service is and holds, as plain data."""
        sandbox = self._host.info if self._host else {}
        plan = sandbox.get("plan", {})
        return {
            "version": __version__,
            "tier": plan.get("tier", "no sandbox"),
            "isolation": sandbox.get("summary", ""),
            "limits": plan.get("limits", {}),
            "packages": sandbox.get("packages", {}),
            "providers": self._providers.names(),
            "runtime_dir": plan.get("runtime_dir", ""),
            "max_sessions": self._options.max_sessions,
            "sessions": len(self._sessions) if self._sessions else 0,
            "counters": (self._sessions.counters if self._sessions else {}) | {"abandoned": self._abandoned},
            "uptime_s": time.time() - self._started,
        }

    async def housekeeping(self) -> None:
        """Ends idle sessions, as long as the service lives."""
        if self._sessions is not None:
            await self._sessions.look_after()

    async def drain(self) -> None:
        """Refuses new requests and waits for those under way."""
        self.draining = True
        await self._answers.drain(self._options.drain_s)

    # One item

    def _cell(self, request: pb.ExecRequest) -> Callable[[], Coroutine[None, None, pb.Result]]:
        async def execute() -> pb.Result:
            self._check_cell(request)
            held = [self._pictures.get(digest) for digest in request.image_digests]
            missing = [d for d, data in zip(request.image_digests, held, strict=True) if data is None]
            if missing:
                return pb.Result(request_id=request.request_id, status=pb.MISSING_IMAGES, missing_digests=missing)
            return await self._sessions.execute(request, held)

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

    def _search(self, request: pb.SearchRequest) -> Callable[[], Coroutine[None, None, pb.Result]]:
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

    async def _stream(self, items: list[tuple[str, Callable]]) -> AsyncIterator[pb.Result]:
        """Answers in order of completion; cells whose caller vanished are stopped after a while."""
        tasks = [asyncio.create_task(self._once(request_id, execute)) for request_id, execute in items]
        try:
            for next_done in asyncio.as_completed(tasks):
                yield await next_done
        finally:
            if not all(task.done() for task in tasks):
                for task in tasks:
                    task.cancel()
                loop = asyncio.get_running_loop()
                for request_id, _ in items:
                    loop.call_later(_ABANDONED_S, self._abandon, request_id)

    async def _once(self, request_id: str, execute: Callable) -> pb.Result:
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

        result = await self._answers.once(request_id, checked)
        if not result.wall_ms:
            result.wall_ms = (time.monotonic() - started) * 1e3
        return result

    def _abandon(self, request_id: str) -> None:
        task = self._answers.task(request_id)
        if task is not None and not task.done():
            self._abandoned += 1
            task.cancel()

    def _learn(self, pictures) -> None:
        limit = self._options.limits.input_image_mb << 20
        for data in pictures:
            if len(data) <= limit:
                self._pictures.add(data)

    async def _check_size(self, items: int, context: grpc.aio.ServicerContext) -> None:
        if items > _MAX_ITEMS:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"{items} items in a batch; the limit is {_MAX_ITEMS}"
            )


class TokenCheck(grpc.aio.ServerInterceptor):
    """Lets calls through that carry the bearer token; health checks need none."""

    def __init__(self, token: str):
        self._expected = f"Bearer {token}".encode()

        async def deny(_: object, context: grpc.aio.ServicerContext) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a bearer token is needed")

        self._deny = grpc.unary_unary_rpc_method_handler(deny)

    async def intercept_service(self, continuation, details):
        given = dict(details.invocation_metadata).get("authorization", "")
        given = given if isinstance(given, bytes) else given.encode()
        if details.method.startswith("/grpc.health.v1.Health/") or hmac.compare_digest(given, self._expected):
            return await continuation(details)
        return self._deny


async def build(options: Options) -> tuple[grpc.aio.Server, int, Tools, Host | None, health.aio.HealthServicer]:
    """A server that listens, its port and its parts. Raises SandboxUnavailable, ValueError for a bad index."""
    host = sessions = starting = None
    if not options.no_sandbox:
        host = Host(
            options.limits, options.packages, warm=options.warm, slots=options.max_sessions + options.warm + 32,
            tier=options.tier, insecure=options.insecure,
        )  # fmt: skip
        starting = asyncio.create_task(host.start())
        await asyncio.sleep(0)  # the manager starts now, and loads libraries while we open indexes
        lanes = Lanes(options.cells, options.slow_cells)
        sessions = Sessions(host, options.limits, max_sessions=options.max_sessions, idle_s=options.idle_s, lanes=lanes)
    try:
        providers = await asyncio.to_thread(Providers.open, options.text_index, options.image_index)
        if starting is not None:
            await starting
    except BaseException:
        if host is not None:
            await host.close()
        raise
    server = grpc.aio.server(
        interceptors=[TokenCheck(options.token)] if options.token else [],
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.max_concurrent_streams", 256),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.so_reuseport", 0),
        ],
    )
    tools = Tools(options, host, sessions, providers)
    tools_pb2_grpc.add_ToolsServicer_to_server(tools, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port(f"{options.host}:{options.port}")
    await server.start()
    for name in ("", "tools.v1.Tools"):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, port, tools, host, checks
