"""Errors of the HTTP interface, with the body that clients of the OpenAI API expect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OVERLOADED_RETRY_S = 1.0  # seconds after which a client may retry where nothing better is known


@dataclass(eq=False)
class ApiError(Exception):
    """An error that a client receives: an HTTP status and `{"error": {message, type, param, code}}`.

    Attributes:
        param: the field of the request that is wrong.
        code: identifies the error for programs, such as `context_length_exceeded`.
        retry_after_s: seconds after which the same request may succeed; None: it will not.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """Returns the JSON body, which is also an event of a stream that fails."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Returns the headers that say when to retry, rounded up to a second."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, round(self.retry_after_s + 0.499)))}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Returns the error for a request that is wrong: status 400."""
    return ApiError(400, message, param=param, code=code)


def unsupported(message: str, param: str) -> ApiError:
    """Returns the error for a feature of the OpenAI API that this server does not have: status 400."""
    return invalid(message, param, "unsupported_parameter")


def overloaded(retry_after_s: float) -> ApiError:
    """Returns the error for a full queue: status 429."""
    message = "the queue of the server is full: retry later"
    return ApiError(429, message, "rate_limit_error", code="queue_full", retry_after_s=retry_after_s)


def draining() -> ApiError:
    """Returns the error for a request to a server that is shutting down: status 503."""
    message = "the server is shutting down: retry later"
    return ApiError(503, message, "server_error", code="draining", retry_after_s=5.0)


def tools_unavailable() -> ApiError:
    """Returns the error for an answer that was lost with the tools service: status 503."""
    message = "the tools service lost this answer: retry later"
    return ApiError(503, message, "server_error", code="tools_unavailable", retry_after_s=5.0)


def internal(error: BaseException) -> ApiError:
    """Returns the error for a defect of the server: status 500, without details that a client could misuse."""
    return ApiError(500, f"internal error ({type(error).__name__}); the server's log has it", "server_error")
