"""Decides which failed requests are sent again, and when."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any

import httpx
import tenacity

OVERLOADED = (429, 503, 529)  # statuses that tell a client to send less
_PARAMETERS = ("stop", "seed", "temperature", "max_tokens")  # without which a request still has its meaning
_REJECTION = re.compile(
    r"unsupported|not supported|does ?n.t support|does not support|unknown|unrecogni[sz]ed|unexpected|not permitted"
    r"|not allowed|extra (?:inputs|fields)|only the default",
    re.IGNORECASE,
)


def is_transient(error: BaseException) -> bool:
    """Returns whether a retry may help: a rejected request stays rejected, except for rate limits and server errors."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return (status in (408, 409, 425, 429) or status >= 500) and not is_out_of_quota(error.response)
    return isinstance(error, (httpx.TransportError, KeyError, IndexError, TypeError, ValueError))


def is_connection_refused(error: BaseException) -> bool:
    """Returns whether nothing listens at the address."""
    return isinstance(error, (httpx.ConnectError, httpx.UnsupportedProtocol))


def is_out_of_quota(response: httpx.Response) -> bool:
    """Returns whether the account has no credit left, which some endpoints report with the status of a rate limit."""
    return response.status_code == 402 or (
        response.status_code == 429 and _error_object(response).get("code") == "insufficient_quota"
    )


def retry_after_s(response: httpx.Response) -> float | None:
    """Returns the seconds that the endpoint asks to wait (`retry-after-ms`, or `retry-after` in seconds or as a date)."""
    for header, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = response.headers.get(header, "")
        try:
            return max(0.0, float(text) * scale)
        except ValueError:
            pass
        if header == "retry-after" and (date := _date(text)) is not None:
            return max(0.0, date - time.time())
    return None


def wait_for_retry(longest_s: float, longest_asked_s: float) -> Any:
    """Returns a wait of tenacity: what the endpoint asks for, up to `longest_asked_s`, or else exponential with jitter."""
    backoff = tenacity.wait_exponential_jitter(initial=0.5, max=longest_s)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = retry_after_s(error.response) if isinstance(error, httpx.HTTPStatusError) else None
        return backoff(state) if asked is None else min(asked, longest_asked_s)

    return wait


def rejected_parameter(response: httpx.Response, payload: Mapping[str, Any]) -> str | None:
    """Returns the parameter of `payload` that the endpoint does not support, if its error says so and it may be left out."""
    if response.status_code not in (400, 422):
        return None
    error = _error_object(response)
    message, named = str(error.get("message") or response.text[:2000]), str(error.get("param") or "")
    if not _REJECTION.search(message) and not str(error.get("code")).startswith("unsupported"):
        return None
    present = [name for name in _PARAMETERS if name in payload]
    if named in present:
        return named
    return next((name for name in present if re.search(rf"\b{name}\b", message)), None)


def quote_error(response: httpx.Response, limit: int = 200) -> str:
    """Returns the start of an error's body in one line, without images and keys that the endpoint may repeat."""
    text = str(_error_object(response).get("message") or response.text[:4000])
    text = re.sub(r"data:[\w/+.-]+;base64,[\w+/=]*", "data:…", text)
    text = re.sub(r"\b(?:sk|key|Bearer)[-_ ][\w*.-]{8,}", "[key]", text)
    return " ".join(text.split())[:limit]


def printable_url(url: str) -> str:
    """Returns a URL without the user name and password that it may contain."""
    return re.sub(r"//[^/@\s]*@", "//", url)


def _error_object(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    error = body.get("error", body) if isinstance(body, dict) else {}
    return error if isinstance(error, dict) else {"message": str(error)}


def _date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return None
