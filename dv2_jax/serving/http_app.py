"""The ASGI application: routes, authentication, bodies, streams, and errors as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dv2_jax.config import ServeConfig
from dv2_jax.serving import chat_response
from dv2_jax.serving.api_error import ApiError, internal
from dv2_jax.serving.chat_request import parse_chat_request, parse_json
from dv2_jax.serving.chat_service import ChatService, PendingResponse
from dv2_jax.serving.request_metrics import RequestMetrics

_log = logging.getLogger(__name__)
CLIENT_CLOSED = 499  # status in the metrics for a client that left; as nginx counts it


def build_app(service: ChatService, config: ServeConfig, token: str) -> ASGIApp:
    """Returns the application. With a token, every path but `/healthz` requires it as bearer token.

    Without one, only requests to a loopback name are answered, so that no page in a browser can reach the server
    through a DNS name of its own.
    """
    endpoints = _Endpoints(service, config)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/models", endpoints.models, methods=["GET"]),
            Route("/v1/models/{name:path}", endpoints.model, methods=["GET"]),
            Route("/healthz", endpoints.health, methods=["GET"]),
            Route("/metrics", endpoints.metrics, methods=["GET"]),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _unexpected_error},
    )
    return _Gate(app, token, config.host)


class _Gate:
    """Middleware that rejects requests without the token, or, where there is none, with a foreign host name."""

    def __init__(self, app: ASGIApp, token: str, host: str):
        self._app, self._token = app, token.encode()
        self._hosts = {host.lower(), "localhost", "127.0.0.1", "::1"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._check(scope) if scope["type"] == "http" and scope["path"] != "/healthz" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await _error_response(error)(scope, receive, send)

    def _check(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        if self._token:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token):
                return None
            message = "the bearer token is missing or wrong: set the api_key of the client to the server's token"
            return ApiError(401, message, "authentication_error", code="invalid_api_key")
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name in self._hosts:
            return None
        return ApiError(421, f"this server has no token and answers only on loopback, not as {name!r}")


class _Endpoints:
    def __init__(self, service: ChatService, config: ServeConfig):
        self._service, self._config = service, config
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._entry(name) for name in self._names()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._names():
            raise ApiError(404, f"the model {name!r} does not exist", param="model", code="model_not_found")
        return JSONResponse(self._entry(name))

    def _names(self) -> tuple[str, str]:
        return self._service.policy.agent_name, self._service.policy.raw_name

    def _entry(self, name: str) -> dict[str, Any]:
        length = self._service.policy.config.agent.max_total_tokens
        return {"id": name, "object": "model", "created": self._created, "owned_by": "dv2_jax", "max_model_len": length}

    async def health(self, request: Request) -> Response:
        if not self._service.engine.is_alive:
            return JSONResponse({"status": "failed"}, 503)
        draining = self._service.is_draining
        return JSONResponse({"status": "draining" if draining else "ok"}, 503 if draining else 200)

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def chat(self, request: Request) -> Response:
        """Answers a chat request, and counts it by its status."""
        started, model, status = time.perf_counter(), "", 500
        response: Response | None = None
        try:
            self._service.check_admission()
            fields = parse_json(await self._body(request))
            policy = self._service.policy
            parsed = parse_chat_request(
                fields,
                agent=policy.agent_name,
                raw=policy.raw_name,
                max_choices=self._config.max_choices,
                greedy_by_default=policy.config.sampling.temperature == 0,
            )
            model = parsed.model
            pending = self._service.admit(parsed)
            try:
                await pending.start()
                if parsed.stream:
                    response = _EventStream(pending, self._config.keep_alive_s, self._service.metrics, started)
                    return response
                body = await _unless_disconnected(request, pending)
            except BaseException:
                pending.close()
                raise
            pending.close()
            status = CLIENT_CLOSED if body is None else 200
            return Response(status_code=204) if body is None else JSONResponse(body)
        except ApiError as error:
            status = error.status
            raise
        finally:
            if not isinstance(response, _EventStream):  # a stream counts itself at its end
                self._service.metrics.record_request(model, status, time.perf_counter() - started)

    async def _body(self, request: Request) -> bytes:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":  # also what a form of another site's page cannot send
            raise ApiError(415, f"the content type is {media_type!r}, not 'application/json'", param="content-type")
        limit = self._config.max_body_mb * 1_000_000
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                message = f"the request has more than {self._config.max_body_mb} MB: send fewer or smaller images"
                raise ApiError(413, message, code="request_too_large")
            parts.append(part)
        return b"".join(parts)


async def _unless_disconnected(request: Request, pending: PendingResponse) -> dict[str, Any] | None:
    """Returns the body of the response, or None if the client has left."""
    answering = asyncio.ensure_future(pending.complete())
    leaving = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        for task in (answering, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ApiError, OSError):
                await task


class _EventStream(Response):
    """A stream of server-sent events with comments while nothing happens; it ends when the client leaves."""

    def __init__(self, pending: PendingResponse, keep_alive_s: float, metrics: RequestMetrics, started: float):
        super().__init__(status_code=200, media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._pending, self._keep_alive_s, self._metrics, self._started = pending, keep_alive_s, metrics, started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            status = 200 if sending.done() else CLIENT_CLOSED
            self._metrics.record_request(self._pending.request.model, status, time.perf_counter() - self._started)
            self._pending.close()
            for task in (sending, leaving):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self._events():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        chunks = self._pending.chunks()
        try:
            waiting = asyncio.ensure_future(anext(chunks))
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=self._keep_alive_s)
                if not done:
                    yield chat_response.KEEP_ALIVE
                    continue
                try:
                    yield chat_response.event(waiting.result())
                except StopAsyncIteration:
                    break
                waiting = asyncio.ensure_future(anext(chunks))
            yield chat_response.STREAM_END
        except ApiError as error:
            yield chat_response.event(error.body())
        except Exception as error:
            _log.exception("a stream failed")
            yield chat_response.event(internal(error).body())
        finally:
            waiting.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers=error.headers())


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = f"{request.method} {request.url.path}"
    if error.status_code in (404, 405):
        return _error_response(ApiError(error.status_code, f"there is no {path}", code="unknown_url"))
    return _error_response(ApiError(error.status_code, str(error.detail)))


async def _unexpected_error(request: Request, error: Exception) -> Response:
    return _error_response(internal(error))
