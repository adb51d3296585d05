"""Sends HTTP requests to a search provider, with timeouts, rate limit, retries, circuit breaker and strict schemas.

Every failure becomes a SearchError whose message contains no URL, header or part of the reply, because URLs and
headers carry API keys. Redirects are not followed; proxies and credentials of the environment are not used.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import time
import zlib
from collections import Counter
from typing import TypeVar

import httpx
import tenacity
from aiolimiter import AsyncLimiter
from pydantic import BaseModel, ValidationError

from tools_service.search.http.circuit_breaker import CircuitBreaker
from tools_service.search.http.request import HttpRequest, RetryPolicy
from tools_service.search.provider import RequestRejected, SearchError

Reply = TypeVar("Reply", bound=BaseModel)

_RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_AUTH_STATUSES = frozenset({401, 402, 403})
_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 8.0
# They log URLs and headers, which hold keys; a logging filter does not apply to child loggers, so all are listed.
_CHATTY_LOGGERS = ("httpx", *(f"httpcore.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")))
_USER_AGENT = "dv2-tools-service"


class TransientError(SearchError):
    """A failure worth a retry, after `retry_after_s` seconds if the provider named a time."""

    def __init__(self, text: str, retry_after_s: float | None = None):
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Transport:
    """Sends requests to one provider, within one event loop. `counters` counts events by name."""

    def __init__(
        self, name: str, policy: RetryPolicy, proxy: str = "", auth_error_hint: str = "check its key and plan"
    ):
        """Sets up the connection pool of one provider.

        Args:
            name: the provider's name in messages.
            policy: timeouts, retries, rate limit and circuit breaker settings.
            proxy: URL of an HTTP proxy; empty: none.
            auth_error_hint: advice for the operator about status 401, 402 or 403.
        """
        self.name, self.policy, self._auth_error_hint = name, policy, auth_error_hint
        self.counters: Counter[str] = Counter()
        self.breaker = CircuitBreaker(name, policy.failures, policy.pause_s)
        # The limiter's capacity must be at least 1, so rates below 1/s become one request per longer period.
        self._limiter = AsyncLimiter(max(policy.rate, 1.0), max(1.0, 1.0 / policy.rate))
        self._slots = asyncio.Semaphore(policy.max_concurrent)
        self._jitter = tenacity.wait_random_exponential(multiplier=_MIN_BACKOFF_S, max=_MAX_BACKOFF_S)
        for logger in _CHATTY_LOGGERS:
            logging.getLogger(logger).addFilter(_is_warning)
        self._http = httpx.AsyncClient(
            timeout=policy.timeout_s,
            follow_redirects=False,
            trust_env=False,
            proxy=proxy or None,
            headers={"accept-encoding": "gzip", "user-agent": _USER_AGENT},
            limits=httpx.Limits(max_connections=policy.max_concurrent, max_keepalive_connections=policy.max_concurrent),
        )

    async def fetch(self, request: HttpRequest, schema: type[Reply]) -> Reply:
        """Sends `request`, with retries, and returns the reply parsed by `schema`. Raises SearchError."""
        policy = self.policy
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=tenacity.stop_after_attempt(policy.attempts) | tenacity.stop_before_delay(policy.budget_s),
            wait=self._wait_s,
            reraise=True,
        )
        try:
            async with asyncio.timeout(policy.budget_s):
                return await retrying(self._attempt, request, schema)
        except TimeoutError:
            self.counters["timeout"] += 1
            raise SearchError(
                f"{self.name} gave no answer within {policy.budget_s:g} s, at {policy.rate:g} requests a second at most"
            ) from None

    async def close(self) -> None:
        await self._http.aclose()

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        """Returns the provider's Retry-After, or an exponential backoff, with jitter to desynchronize clients."""
        error = state.outcome.exception() if state.outcome is not None else None
        retry_after_s, jitter = getattr(error, "retry_after_s", None), self._jitter(state)
        return jitter if retry_after_s is None else retry_after_s + min(jitter, 0.1 * retry_after_s)

    async def _attempt(self, request: HttpRequest, schema: type[Reply]) -> Reply:
        self.breaker.check()
        async with self._slots, self._limiter:
            with self.breaker.guard():
                return self._validate(await self._send(request), schema)

    async def _send(self, request: HttpRequest) -> bytes:
        self.counters["requests"] += 1
        try:
            async with asyncio.timeout(self.policy.timeout_s):
                sent = self._http.build_request(
                    request.method, request.url, params=request.params, headers=request.headers, json=request.json
                )
                response = await self._http.send(sent, stream=True)
                try:
                    self._check_status(response)
                    return await self._read_body(response)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            self.counters["timeout"] += 1
            raise TransientError(f"{self.name} gave no answer within {self.policy.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self.counters["connection"] += 1
            raise TransientError(f"{self.name} cannot be reached ({type(error).__name__})") from None

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if response.is_success:
            return
        self.counters[f"status {status}"] += 1
        if response.is_redirect:
            raise SearchError(
                f"{self.name} answers with a redirect ({status}), which is not followed: give its final URL"
            )
        if status in _AUTH_STATUSES:
            raise SearchError(f"{self.name} refuses access ({status}): {self._auth_error_hint}")
        if status in _RETRYABLE_STATUSES or status >= 500:
            raise TransientError(f"{self.name} answers with status {status}", _retry_after_s(response))
        raise RequestRejected(f"{self.name} answers with status {status}")

    async def _read_body(self, response: httpx.Response) -> bytes:
        """Reads and decompresses the body, never holding more than the limit in memory (gzip bombs)."""
        limit = self.policy.reply_bytes
        encoding = response.headers.get("content-encoding", "").strip().lower() or "identity"
        if encoding not in ("identity", "gzip"):
            raise SearchError(f"{self.name} packs its reply in a way that was not asked for")
        decompressor = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
        body = bytearray()
        try:
            async for raw in response.aiter_raw():
                # Decompression stops one byte above the limit.
                body += raw if decompressor is None else decompressor.decompress(raw, limit + 1 - len(body))
                if len(body) > limit:
                    self.counters["too large"] += 1
                    raise SearchError(f"{self.name} answers with more than {limit >> 10} KiB")
        except zlib.error:
            raise SearchError(f"{self.name} answers with a broken gzip stream") from None
        if decompressor is not None and not decompressor.eof:
            raise TransientError(f"{self.name} answers with a gzip stream that ends early")
        return bytes(body)

    def _validate(self, body: bytes, schema: type[Reply]) -> Reply:
        try:
            return schema.model_validate_json(body)
        except ValidationError as error:
            # Reports location and kind of the error only: values come from the untrusted reply.
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        known = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in _field_names(schema))
        self.counters["schema"] += 1
        # Raised outside the handler: as `__context__`, the validation error would expose the reply.
        raise SearchError(f"{self.name} answers in an unknown form ({first['type']} at {known or 'the top'})")


def _field_names(schema: type[BaseModel]) -> set[str]:
    """Returns the field names of the schema on all levels, which may appear in a message."""
    definition = schema.model_json_schema()
    parts = [definition, *definition.get("$defs", {}).values()]
    return {name for part in parts for name in part.get("properties", {})}


def _retry_after_s(response: httpx.Response) -> float | None:
    """Parses Retry-After, a number of seconds or a date (RFC 9110, 10.2.3); None if absent or invalid."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
