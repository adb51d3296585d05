"""HTTP to a search provider: a time-out, a rate, retries, a circuit breaker, a cap on the reply, a strict schema.

Every failure becomes a SearchError whose text is ours alone: no address, no header and nothing of the reply is in it,
for addresses and headers carry keys. Redirects are not followed, proxies and credentials of the environment not used.
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
from tools_service.search.http.request import Policy, Request
from tools_service.search.provider import Rejected, SearchError

Reply = TypeVar("Reply", bound=BaseModel)

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSED = frozenset({401, 402, 403})
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 8.0
# They log addresses and headers, and both hold keys; a filter on a logger does not reach those below it.
_TALKATIVE = ("httpx", *(f"httpcore.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")))
_USER_AGENT = "dv2-tools-service"


class Transient(SearchError):
    """Worth another attempt, after ``after_s`` seconds where the provider said so."""

    def __init__(self, text: str, after_s: float | None = None):
        super().__init__(text)
        self.after_s = after_s


class Transport:
    """The one way to a provider; for one event loop. ``counters`` say how often what happened."""

    def __init__(self, name: str, policy: Policy, proxy: str = "", if_refused: str = "check its key and plan"):
        """``name`` is what messages call the provider; ``proxy`` the URL of an HTTP proxy, or empty; ``if_refused`` what
        an operator can do about status 401, 402 or 403."""
        self.name, self.policy, self._if_refused = name, policy, if_refused
        self.counters: Counter[str] = Counter()
        self.breaker = CircuitBreaker(name, policy.failures, policy.pause_s)
        # At least one a period: a rate below one a second is one in a longer time.
        self._limiter = AsyncLimiter(max(policy.rate, 1.0), max(1.0, 1.0 / policy.rate))
        self._slots = asyncio.Semaphore(policy.concurrent)
        self._jitter = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)
        for logger in _TALKATIVE:
            logging.getLogger(logger).addFilter(_is_warning)
        self._http = httpx.AsyncClient(
            timeout=policy.timeout_s,
            follow_redirects=False,
            trust_env=False,
            proxy=proxy or None,
            headers={"accept-encoding": "gzip", "user-agent": _USER_AGENT},
            limits=httpx.Limits(max_connections=policy.concurrent, max_keepalive_connections=policy.concurrent),
        )

    async def ask(self, request: Request, schema: type[Reply]) -> Reply:
        """The reply to ``request``, checked against ``schema``. Raises SearchError."""
        policy = self.policy
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Transient),
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
        """What the provider asked for, or ever longer; and never in step with others."""
        error = state.outcome.exception()
        jitter = self._jitter(state)
        return jitter if error.after_s is None else error.after_s + min(jitter, 0.1 * error.after_s)

    async def _attempt(self, request: Request, schema: type[Reply]) -> Reply:
        self.breaker.check()
        async with self._slots, self._limiter:
            with self.breaker.guard():
                return self._checked(await self._body(request), schema)

    async def _body(self, request: Request) -> bytes:
        self.counters["requests"] += 1
        try:
            async with asyncio.timeout(self.policy.timeout_s):
                sent = self._http.build_request(
                    request.method, request.url, params=request.params, headers=request.headers, json=request.json
                )
                response = await self._http.send(sent, stream=True)
                try:
                    self._check_status(response)
                    return await self._read(response)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            self.counters["timeout"] += 1
            raise Transient(f"{self.name} gave no answer within {self.policy.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self.counters["connection"] += 1
            raise Transient(f"{self.name} cannot be reached ({type(error).__name__})") from None

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if response.is_success:
            return
        self.counters[f"status {status}"] += 1
        if response.is_redirect:
            raise SearchError(
                f"{self.name} answers with a redirect ({status}), which is not followed: give its final URL"
            )
        if status in _REFUSED:
            raise SearchError(f"{self.name} refuses access ({status}): {self._if_refused}")
        if status in _RETRIED or status >= 500:
            raise Transient(f"{self.name} answers with status {status}", _retry_after_s(response))
        raise Rejected(f"{self.name} answers with status {status}")

    async def _read(self, response: httpx.Response) -> bytes:
        """The body, never more than the limit in memory, whatever it is packed from."""
        limit = self.policy.reply_bytes
        encoding = response.headers.get("content-encoding", "").strip().lower() or "identity"
        if encoding not in ("identity", "gzip"):
            raise SearchError(f"{self.name} packs its reply in a way that was not asked for")
        unpack = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
        body = bytearray()
        try:
            async for raw in response.aiter_raw():
                # Decompression stops one byte above the limit.
                body += raw if unpack is None else unpack.decompress(raw, limit + 1 - len(body))
                if len(body) > limit:
                    self.counters["too large"] += 1
                    raise SearchError(f"{self.name} answers with more than {limit >> 10} KiB")
        except zlib.error:
            raise SearchError(f"{self.name} answers with a broken gzip stream") from None
        if unpack is not None and not unpack.eof:
            raise Transient(f"{self.name} answers with a gzip stream that ends early")
        return bytes(body)

    def _checked(self, body: bytes, schema: type[Reply]) -> Reply:
        try:
            return schema.model_validate_json(body)
        except ValidationError as error:
            # Where and what kind, by our own names: the values come from outside.
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        known = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in _fields(schema))
        self.counters["schema"] += 1
        # Outside of the handler: the validation error holds the reply, and would stay attached to this one.
        raise SearchError(f"{self.name} answers in an unknown form ({first['type']} at {known or 'the top'})")


def _fields(schema: type[BaseModel]) -> set[str]:
    """Names that may appear in a message: those of the schema itself, on all levels."""
    definition = schema.model_json_schema()
    parts = [definition, *definition.get("$defs", {}).values()]
    return {name for part in parts for name in part.get("properties", {})}


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds to wait, from a number or a date (RFC 9110, 10.2.3); None without a sensible one."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
