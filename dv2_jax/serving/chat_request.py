"""Parses the body of a chat completion. Fields of the OpenAI API that cannot be honored are errors; others are ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dv2_jax.serving.api_error import ApiError, invalid, unsupported
from dv2_jax.serving.data_urls import decode_image

SYSTEM_ROLES = ("system", "developer")
_ROLES = (*SYSTEM_ROLES, "user", "assistant")
_MAX_STOPS = 16
# Fields that change the distribution of tokens in ways that the sampler does not have, with their neutral values.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "top_p": (1,), "top_k": (0, -1), "min_p": (0,),
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,),
}  # fmt: skip
_IRRELEVANT_WHEN_GREEDY = ("top_p", "top_k", "min_p")
_EMPTY = ("tools", "functions", "logit_bias", "audio")  # fields that must be absent or empty


@dataclass(frozen=True)
class ChatMessage:
    """A message: its role, and texts (str) and encoded images (bytes) in order."""

    role: str
    parts: tuple[str | bytes, ...]

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def images(self) -> list[bytes]:
        """The encoded images, in order."""
        return [part for part in self.parts if isinstance(part, bytes)]


@dataclass(frozen=True)
class ChatRequest:
    """A validated request. `max_tokens`, `temperature` and `seed` are None where the client leaves them open."""

    model: str
    messages: tuple[ChatMessage, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    return_token_ids: bool = False
    include_stop_text: bool = False  # vLLM's include_stop_str_in_output
    continue_last: bool = False  # vLLM's continue_final_message: the last message is the beginning of the reply


def parse_json(body: bytes) -> dict[str, Any]:
    """Returns the object of a JSON body. Raises ApiError."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise invalid(f"the body is a JSON {type(fields).__name__}, not an object", code="invalid_json")
    return fields


def parse_chat_request(
    fields: Mapping[str, Any], *, agent: str, raw: str, max_choices: int, greedy_by_default: bool
) -> ChatRequest:
    """Validates the fields of a request to the agent or to the raw model.

    Args:
        agent, raw: the served names.
        max_choices: limit of `n`.
        greedy_by_default: True if a request without `temperature` is decoded greedily.

    Raises:
        ApiError: status 404 for an unknown model, else 400; `param` names the field.
    """
    read = _Reader(fields)
    model = read.value("model", str)
    if model is None:
        raise invalid("model is missing", "model")
    if model not in (agent, raw):
        message = f"the model {model!r} does not exist; this server has {agent!r} and {raw!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    is_raw = model == raw
    temperature = read.number("temperature", 0, 2)
    _reject_unsupported(read, greedy=temperature == 0 or (temperature is None and greedy_by_default))
    options = read.value("stream_options", dict) or {}
    request = ChatRequest(
        model=model,
        messages=_messages(read.fields.get("messages")),
        max_tokens=read.integer("max_completion_tokens", 1) or read.integer("max_tokens", 1),
        temperature=temperature,
        n=read.integer("n", 1, max_choices) or 1,
        seed=read.integer("seed"),
        stop=_stop(read.fields.get("stop")),
        stream=bool(read.value("stream", bool)),
        include_usage=bool(options.get("include_usage")),
        logprobs=bool(read.value("logprobs", bool)),
        return_token_ids=bool(read.value("return_token_ids", bool)),
        include_stop_text=bool(read.value("include_stop_str_in_output", bool)),
        continue_last=bool(read.value("continue_final_message", bool)),
    )
    _check_conversation(request, is_raw)
    if not is_raw and request.logprobs:
        raise unsupported(f"the agent {agent!r} has no logprobs: ask {raw!r}", "logprobs")
    return request


class _Reader:
    """Reads typed fields; null counts as absent, as in the OpenAI API."""

    def __init__(self, fields: Mapping[str, Any]):
        self.fields = fields

    def value(self, name: str, kind: type) -> Any:
        value = self.fields.get(name)
        if value is not None and not isinstance(value, kind):
            raise invalid(f"{name} is {_shown(value)}, not of type {kind.__name__}", name)
        return value

    def integer(self, name: str, low: int | None = None, high: int | None = None) -> int | None:
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(f"{name} is {_shown(value)}, not an integer", name)
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise invalid(f"{name} is {value}: use an integer {bounds}", name)
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise invalid(f"{name} is {_shown(value)}: use a number between {low} and {high}", name)
        return float(value)


def _reject_unsupported(read: _Reader, *, greedy: bool) -> None:
    for name, neutral in _NEUTRAL.items():
        value = read.fields.get(name)
        if value is None or value in neutral or (greedy and name in _IRRELEVANT_WHEN_GREEDY):
            continue
        raise unsupported(f"{name} = {_shown(value)} is not supported: the sampler has only temperature", name)
    for name in _EMPTY:
        if read.fields.get(name):
            hint = ": the agent has its own tools, and the raw model writes calls as text" if name == "tools" else ""
            raise unsupported(f"{name} is not supported{hint}", name)
    if read.fields.get("tool_choice") not in (None, "none", "auto"):
        raise unsupported("tool_choice is not supported: there are no client-defined tools", "tool_choice")
    response_format = read.fields.get("response_format")
    if response_format is not None and response_format != {"type": "text"}:
        raise unsupported("response_format is not supported: replies are text", "response_format")
    if any(modality != "text" for modality in read.value("modalities", list) or ()):
        raise unsupported("modalities other than text are not supported", "modalities")
    if read.integer("top_logprobs", 0, 20):
        raise unsupported("top_logprobs is not supported: logprobs has those of the sampled tokens", "top_logprobs")


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise invalid("stop is no string and no list of strings that are not empty", "stop")
    if len(stops) > _MAX_STOPS:
        raise invalid(f"stop has {len(stops)} strings; at most {_MAX_STOPS} are supported", "stop")
    return tuple(dict.fromkeys(stops))


def _messages(value: Any) -> tuple[ChatMessage, ...]:
    if not isinstance(value, list) or not value:
        raise invalid("messages is missing, or no list of at least one message", "messages")
    return tuple(_message(entry, f"messages[{index}]") for index, entry in enumerate(value))


def _message(entry: Any, param: str) -> ChatMessage:
    if not isinstance(entry, dict) or not isinstance(entry.get("role"), str):
        raise invalid(f"{param} is no object with a role", param)
    role = entry["role"]
    if role in ("tool", "function") or entry.get("tool_calls") or entry.get("function_call"):
        raise unsupported(f"{param}: calls are text here; send the output of a tool as a user message", param)
    if role not in _ROLES:
        raise invalid(f"{param}.role is {role!r}: use one of {', '.join(_ROLES)}", f"{param}.role")
    content = entry.get("content")
    if isinstance(content, str):
        return ChatMessage(role, (content,))
    if not isinstance(content, list) or not content:
        raise invalid(f"{param}.content is no string and no list of parts", f"{param}.content")
    parts = tuple(_part(part, f"{param}.content[{index}]") for index, part in enumerate(content))
    if role != "user" and any(isinstance(part, bytes) for part in parts):
        raise invalid(f"{param} has an image, but only messages of the user may have images", param)
    return ChatMessage(role, parts)


def _part(part: Any, param: str) -> str | bytes:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if isinstance(url, str):
            return decode_image(url, f"{param}.image_url")
    if kind in ("text", "image_url", "refusal"):
        raise invalid(f"{param} has no {'url' if kind == 'image_url' else 'text'}", param)
    raise unsupported(f"{param} has type {kind!r}: use text or image_url", param)


def _check_conversation(request: ChatRequest, is_raw: bool) -> None:
    roles = [message.role for message in request.messages if message.role not in SYSTEM_ROLES]
    if not roles or roles[0] != "user":
        raise invalid("messages has no message of the user before the first of the assistant", "messages")
    if request.continue_last and not is_raw:
        raise unsupported("the agent cannot continue a message; the raw model can", "continue_final_message")
    expected = "assistant" if request.continue_last else "user"
    if roles[-1] != expected:
        raise invalid(f"the last message is one of the {roles[-1]}, not of the {expected}", "messages")
    if is_raw and "assistant" in roles:
        _check_alternation(request.messages)


def _check_alternation(messages: Sequence[ChatMessage]) -> None:
    """Checks that users and assistants alternate after the first turn, where each message answers the one before."""
    roles = [message.role for message in messages]
    start = roles.index("assistant")
    if any(role != ("assistant", "user")[index % 2] for index, role in enumerate(roles[start:])):
        raise invalid(
            f"after the first message of the assistant, user and assistant must alternate: {roles[start:]}", "messages"
        )


def _shown(value: Any) -> str:
    return repr(value)[:60]
