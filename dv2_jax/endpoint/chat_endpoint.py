"""A client of one model behind an OpenAI-compatible chat endpoint.

A request is retried on rate limits, server errors, broken connections and unreadable replies: after the time that the
endpoint asks for (`retry-after`), or with exponential back-off and jitter. Rate limits also lower the number of concurrent
requests. Parameters that the endpoint rejects (`stop`, `seed`, `temperature`) are left out, with one warning each.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import tenacity

from dv2_jax.config import ConfigError, ServiceOutage
from dv2_jax.endpoint.adaptive_limit import AdaptiveLimit
from dv2_jax.endpoint.chat_reply import ChatReply, encode_body, request_digest
from dv2_jax.endpoint.rate_limit import RateLimit
from dv2_jax.endpoint.reply_journal import ReplyJournal
from dv2_jax.endpoint.retry_rules import (
    OVERLOADED,
    is_connection_refused,
    is_out_of_quota,
    is_transient,
    printable_url,
    quote_error,
    rejected_parameter,
    retry_after_s,
    wait_for_retry,
)
from dv2_jax.endpoint.success_clock import SuccessClock

_log = logging.getLogger(__name__)
_UNREADABLE = (httpx.HTTPError, httpx.InvalidURL, KeyError, IndexError, TypeError, ValueError)


class EndpointUnavailable(RuntimeError):
    """The endpoint gave no reply after all retries, or refused the request. It is no answer of the model."""


class EndpointOutage(ServiceOutage):
    """The endpoint has given no reply for so long, or refuses so firmly, that the run must stop."""


@dataclass(frozen=True)
class EndpointNames:
    """The words with which messages name an endpoint, and the configuration fields that change it."""

    service: str = "the endpoint"
    result: str = "reply"
    address_key: str = "eval.endpoint"
    model_key: str = "eval.endpoint_model"
    outage: str = ""  # the limit without a result, as messages show it; by default without a field
    key_variable: str = "DV2_ENDPOINT_API_KEY"  # environment variable with the API key


class ChatEndpoint:
    """A thread-safe client. With an empty `model` it uses the first model that the endpoint lists.

    Args:
        base_url: up to and including `/v1`.
        journal: replies are stored in it; a request that has a stored reply is not sent, and equal requests at the same
            time are sent once. The caller closes it.
        timeout_s: per request.
        attempts: per call of `complete`.
        longest_wait_s: between two attempts, unless the endpoint asks for more.
        outage_s: without one reply, from the first failed request on: then calls raise EndpointOutage.
        slow_s: is added to `outage_s` if the last request has timed out: one slow reply is no outage.
        concurrency: maximum requests at the same time; rate limits lower it for a time.
        rate: limits per minute that are kept on our side; None: only those that the endpoint enforces.
        stop_on_refused_key: a refused key (401) or an empty account (402) is an outage at once.
        probe_timeout_s: of the first request, which may load the model.
    """

    def __init__(
        self,
        base_url: str,
        model: str = "",
        *,
        journal: ReplyJournal | None = None,
        names: EndpointNames | None = None,
        timeout_s: float = 600.0,
        attempts: int = 8,
        longest_wait_s: float = 30.0,
        outage_s: float = 300.0,
        slow_s: float = 0.0,
        concurrency: int = 64,
        rate: RateLimit | None = None,
        stop_on_refused_key: bool = True,
        probe_timeout_s: float = 60.0,
    ):
        self.base_url, self.model, self.journal = base_url, model, journal
        self.names = names if names is not None else EndpointNames()
        self.timeout_s, self.attempts, self.longest_wait_s = timeout_s, attempts, longest_wait_s
        self.outage_s, self.slow_s, self.probe_timeout_s = outage_s, slow_s, probe_timeout_s
        self.stop_on_refused_key = stop_on_refused_key
        self.limit = AdaptiveLimit(concurrency)
        self.rate = rate or RateLimit()
        self.requests_sent = 0  # attempts included
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._clock = SuccessClock()
        self._closing = threading.Event()
        self._left_out: set[str] = set()  # parameters that the endpoint rejects
        self._in_flight: dict[str, concurrent.futures.Future[ChatReply]] = {}  # by digest

    @property
    def address(self) -> str:
        """The base URL without user name and password, for messages."""
        return printable_url(self.base_url)

    def complete(
        self, messages: Sequence[Mapping[str, Any]], *, key: str = "", allow_empty: bool = False, **parameters: Any
    ) -> ChatReply:
        """Returns the reply to one chat request, from the journal if it is stored there.

        `ChatReply.failure` says whether the reply is incomplete; it is stored all the same, since another attempt would
        cost the same again.

        Args:
            key: tells apart equal requests that are to be sent separately, such as samples; it is not sent.
            allow_empty: an empty text is a reply; otherwise it is retried.
            parameters: sampling parameters as the API names them, `max_tokens`, `stop` and so on. None: not sent.

        Raises:
            EndpointUnavailable: no reply after all attempts, or the request is refused.
            EndpointOutage: no request had a reply for `outage_s`, or the key is refused.
            RunFailure: the reply cannot be stored.
        """
        parameters = {name: value for name, value in parameters.items() if value is not None}
        self._connect()  # reads certificates, which takes long enough to be no part of the time without a reply
        started = time.monotonic()
        if not self.model:
            self._retry(started, self._find_model)
        if self.journal is None:
            return self._retry(started, self._send, messages, parameters, allow_empty=allow_empty)
        digest = request_digest(self.model, messages, parameters, key)
        with self._lock:
            future = self._in_flight.get(digest)
            is_first = future is None
            if future is None:
                future = self._in_flight[digest] = concurrent.futures.Future()
        if not is_first:
            return future.result()
        try:
            reply = self.journal.get(digest)
            if reply is None:
                reply = self._retry(started, self._send, messages, parameters, allow_empty=allow_empty)
                reply = dataclasses.replace(reply, digest=digest)
                self.journal.add(reply)
            future.set_result(reply)
            return reply
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._in_flight[digest]

    def list_models(self, timeout_s: float | None = None) -> list[str]:
        """Returns the names of the served models. Raises what httpx raises, or KeyError, TypeError or ValueError."""
        response = self._connect().get("models", timeout=timeout_s or self.timeout_s)
        response.raise_for_status()
        return [str(entry["id"]) for entry in response.json()["data"]]

    def probe(self) -> None:
        """Sends the shortest possible chat request, so that a wrong address, key or model name fails at the start.

        Raises:
            ConfigError: the endpoint cannot be used; the message names the field to change.
        """
        names, where = self.names, f"{self.names.address_key} = {self.address}"
        try:
            served = self._listed_models()
            if not self.model and not served:
                raise ConfigError(f"{where}: no model is served there; name {names.model_key}")
            if self.model and served and self.model not in served:
                raise ConfigError(
                    f"{names.model_key} = {self.model!r} is not served at {self.address}, which has"
                    f" {', '.join(served[:8])}"
                )
            self.model = self.model or served[0]
            self._probe_chat()
        except httpx.HTTPStatusError as error:
            raise ConfigError(self._refusal(error.response)) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConfigError(
                f"{where}: no connection to {names.service} ({_reason(error)}); start it, or correct the address"
            ) from None
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{where} does not answer like an OpenAI-compatible API ({_reason(error)}); the address ends with /v1"
            ) from None

    def close(self) -> None:
        """Closes the connections and ends all waits; requests that are open or come later have no reply."""
        self._closing.set()
        self.limit.close()
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _listed_models(self) -> list[str]:
        """Returns the listed models; empty if the model is named and the endpoint, like some gateways, lists none."""
        try:
            return self.list_models(self.probe_timeout_s)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 404 or not self.model:
                raise
            return []

    def _find_model(self) -> None:
        self.model = self.list_models()[0]

    def _probe_chat(self) -> None:
        retry = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(3),
            wait=tenacity.wait_exponential_jitter(initial=0.5, max=min(4.0, self.longest_wait_s)),
            retry=tenacity.retry_if_exception(lambda error: is_transient(error) and not is_connection_refused(error)),
            reraise=True,
        )
        messages = [{"role": "user", "content": "Reply with Yes."}]
        retry(self._send, messages, {"max_tokens": 64}, timeout_s=self.probe_timeout_s)

    def _refusal(self, response: httpx.Response) -> str:
        status, names, where = response.status_code, self.names, f"{self.names.address_key} = {self.address}"
        if status in (401, 403):
            return f"{where}: {status}, the API key is refused; set {names.key_variable}"
        if status == 404:
            return (
                f"{where}: 404 for {response.url.path}; the address ends with /v1, and"
                f" {names.model_key} = {self.model!r} must be served there"
            )
        return f"{where}: {status} from {response.url.path}: {quote_error(response)}"

    def _retry(self, started: float, request: Any, *args: Any, **kwargs: Any) -> Any:
        retry = tenacity.Retrying(
            stop=lambda state: (
                self._closing.is_set()
                or state.attempt_number >= self.attempts
                or self._clock.silent_s(started) >= self.outage_s
            ),
            wait=wait_for_retry(self.longest_wait_s, self.outage_s),
            retry=tenacity.retry_if_exception(is_transient),
            sleep=lambda seconds: self._closing.wait(seconds),
            reraise=True,
        )
        try:
            result = retry(request, *args, **kwargs)
        except _UNREADABLE as error:
            self._fail(started, error)
        else:
            self._clock.succeeded()
            return result

    def _fail(self, started: float, error: Exception) -> None:
        names, silent_s = self.names, self._clock.failed(started)
        if silent_s >= self.outage_s + (self.slow_s if isinstance(error, httpx.TimeoutException) else 0.0):
            limit = f" ({names.outage})" if names.outage else ""
            raise EndpointOutage(
                f"{names.service} at {self.address} has given no {names.result} for {silent_s:.0f} s{limit};"
                f" last error: {_describe(error)}"
            ) from error
        response = error.response if isinstance(error, httpx.HTTPStatusError) else None
        if self.stop_on_refused_key and response is not None:
            if response.status_code == 401:
                raise EndpointOutage(self._refusal(response)) from error
            if is_out_of_quota(response):
                raise EndpointOutage(
                    f"{names.service} at {self.address}: the account has no credit left: {quote_error(response)}"
                ) from error
        raise EndpointUnavailable(
            f"{names.service} at {self.address} gave no {names.result} in {self.attempts} attempts: {_describe(error)}"
            if is_transient(error)
            else f"{names.service} at {self.address} refused the request: {_describe(error)}"
        ) from error

    def _send(
        self,
        messages: Sequence[Mapping[str, Any]],
        parameters: Mapping[str, Any],
        *,
        allow_empty: bool = False,
        timeout_s: float | None = None,
    ) -> ChatReply:
        """Sends a request once, or once more for each parameter that the endpoint is found to reject."""
        while True:
            payload = {"model": self.model, "messages": messages, **self._accepted(parameters)}
            wait_s, reserved = self.rate.reserve()
            if wait_s:
                self._closing.wait(wait_s)
            response, seconds = self._post(encode_body(payload), timeout_s)
            rejected = rejected_parameter(response, payload)
            if rejected is None:
                break
            self._leave_out(rejected, response)
        response.raise_for_status()
        left_out = tuple(sorted(set(parameters) & self._left_out - {"max_tokens"}))
        reply = ChatReply.from_body(response.json(), seconds=round(seconds, 3), left_out=left_out)
        self.rate.settle(reserved, reply.prompt_tokens + reply.completion_tokens)
        if not reply.text.strip() and not allow_empty and not reply.failure:
            raise ValueError("empty completion")
        return dataclasses.replace(reply, model=reply.model or self.model)

    def _post(self, body: bytes, timeout_s: float | None) -> tuple[httpx.Response, float]:
        with self.limit.slot() as number:
            if self._closing.is_set():
                raise EndpointUnavailable(f"{self.names.service} at {self.address}: the client is closed")
            started = time.monotonic()
            with self._lock:
                self.requests_sent += 1
            response = self._connect().post(
                "chat/completions",
                content=body,
                headers={"Content-Type": "application/json"},
                timeout=timeout_s or self.timeout_s,
            )
            seconds = time.monotonic() - started
        if response.status_code in OVERLOADED:
            self.limit.overloaded(number, min(retry_after_s(response) or 0.0, self.outage_s))
        elif response.status_code < 400:
            self.limit.succeeded()
        return response, seconds

    def _accepted(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        accepted = {name: value for name, value in parameters.items() if name not in self._left_out}
        if "max_tokens" in parameters and "max_tokens" in self._left_out:  # its newer name
            accepted["max_completion_tokens"] = parameters["max_tokens"]
        return accepted

    def _leave_out(self, parameter: str, response: httpx.Response) -> None:
        with self._lock:
            is_new = parameter not in self._left_out
            self._left_out.add(parameter)
        if is_new and parameter != "max_tokens":
            _log.warning(
                "%s rejects the parameter %r, which is left out: %s", self.address, parameter, quote_error(response)
            )

    def _connect(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(
                    base_url=self.base_url.rstrip("/") + "/",
                    headers={"Authorization": f"Bearer {os.environ.get(self.names.key_variable, 'EMPTY')}"},
                    timeout=self.timeout_s,
                    limits=httpx.Limits(max_connections=self.limit.maximum),
                )
            return self._client


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _describe(error: Exception) -> str:
    """Returns an error in one line, with the start of the body for a status."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"{error.response.status_code} {quote_error(error.response)}".strip()
    return printable_url(" ".join(_reason(error).split())[:300])
