"""Defines the reply of a chat endpoint and the digest that identifies a request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_FAILURES = {
    "length": "the reply was cut at its token limit (finish_reason length)",
    "content_filter": "the endpoint withheld the reply (finish_reason content_filter)",
}


@dataclass(frozen=True)
class ChatReply:
    """One reply.

    Attributes:
        text: content of the message, or the text of a refusal.
        finish_reason: as sent, such as `stop`, `length` or `content_filter`; empty if the endpoint sends none.
        model: name of the model in the reply, or the requested one.
        digest: that of the request, see `request_digest`.
        prompt_tokens, completion_tokens: of `usage`; 0 if the endpoint reports none.
        cached_tokens: those of `prompt_tokens` that the endpoint had cached.
        seconds: from the first byte of the request to the last one of the reply.
        stop_reason: the stop string that ended the reply, where the endpoint tells it (vLLM does).
        knows_stop_reason: True if the endpoint reports stop reasons: then None means that the model ended by itself.
        reasoning: thoughts that the endpoint returns apart from the content.
        left_out: parameters that the endpoint rejects, and which were therefore not sent.
    """

    text: str
    finish_reason: str = ""
    model: str = ""
    digest: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    stop_reason: str | None = None
    knows_stop_reason: bool = False
    reasoning: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def failure(self) -> str:
        """The reason for which the text is no complete reply; empty: it is one."""
        return _FAILURES.get(self.finish_reason, "")

    def to_dict(self) -> dict[str, Any]:
        """Converts to JSON types."""
        return asdict(self) | {"left_out": list(self.left_out)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChatReply:
        """Converts a stored reply; fields of a newer version are ignored."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**known | {"left_out": tuple(known.get("left_out", ()))})

    @classmethod
    def from_body(cls, body: Mapping[str, Any], **fields: Any) -> ChatReply:
        """Reads the body of a response of `chat/completions`.

        Raises:
            KeyError, IndexError, TypeError, ValueError: it is none.
        """
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content")
        if text is None:
            text = message.get("refusal") or ""
        if not isinstance(text, str):
            raise ValueError(f"the content of the message is a {type(text).__name__}, not text")
        usage = body.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        stop_reason = choice.get("stop_reason")
        return cls(
            text,
            str(choice.get("finish_reason") or ""),
            str(body.get("model") or ""),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
            stop_reason=stop_reason if isinstance(stop_reason, str) else None,
            knows_stop_reason="stop_reason" in choice,
            reasoning=str(message.get("reasoning_content") or message.get("reasoning") or ""),
            **fields,
        )


def encode_body(payload: Mapping[str, Any]) -> bytes:
    """Encodes a JSON body. A policy can write lone surrogates, which UTF-8 cannot encode; they become `?`."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8", "replace")


def request_digest(
    model: str, messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any], key: str = ""
) -> str:
    """Returns the SHA-256 of a request as hexadecimal text: model, messages with their images, and parameters.

    The address is not part of it, so that stored replies stay valid when the model is served elsewhere. `key` tells apart
    requests that are equal and still to be sent separately, such as the samples of one question.
    """
    content = {"model": model, "messages": messages, "parameters": parameters} | ({"key": key} if key else {})
    return hashlib.sha256(encode_body(content)).hexdigest()
