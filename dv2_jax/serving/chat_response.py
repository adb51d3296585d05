"""Builds the bodies of chat completions and the events of their streams."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dv2_jax.agent.tool_use import tool_kinds
from dv2_jax.agent.trajectory import Finish, Trajectory
from dv2_jax.config import RewardConfig
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.evaluation.benchmarks.benchmark import BenchmarkAnswer
from dv2_jax.rewards import final_answer

KEEP_ALIVE = b": keep-alive\n\n"
STREAM_END = b"data: [DONE]\n\n"
_NO_ANSWER = {
    Finish.MAX_TURNS: "No answer: no turns were left.",
    Finish.MAX_TOKENS: "No answer: no room was left for more text.",
    Finish.TURN_LIMIT: "No answer: a turn reached its length limit.",
}


@dataclass(frozen=True)
class Choice:
    """One answer.

    Attributes:
        reasoning: the trajectory as text; None for the raw model.
        finish_reason: `stop` or `length`.
        completion_tokens: sampled tokens.
        reasoning_tokens: those that are not in the content.
        extra: further fields of the choice.
    """

    content: str
    finish_reason: str
    completion_tokens: int
    reasoning: str | None = None
    reasoning_tokens: int = 0
    logprobs: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ResponseHead:
    """The fields that a completion shares with the chunks of its stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def to_dict(self, kind: str) -> dict[str, Any]:
        """Returns the fields with `object` set to `kind`."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


def answer_text(trajectory: Trajectory, tokenizer: Tokenizer) -> str:
    """Returns the text that an evaluation scores: the final answer, or else the last turn without its thoughts.

    It is never empty: a trajectory without either has a sentence that says why.
    """
    text = trajectory.response_text(tokenizer)
    last_turn = trajectory.turns[-1].text if trajectory.turns else ""
    scored = BenchmarkAnswer(text, final_answer(text), RewardConfig(), last_turn=last_turn).prediction
    return scored or _NO_ANSWER.get(trajectory.finish, "No answer.")


def trajectory_text(turns: Sequence[Any]) -> str:
    """Returns turns and observations as text, in which `<image>` stands for an image that a tool returned."""
    return "".join(turn_text(turn) for turn in turns)


def turn_text(turn: Any) -> str:
    """Returns one turn with its observation, ending with a newline."""
    return "".join(f"{part.strip()}\n" for part in (turn.text, turn.observation or "") if part.strip())


def agent_choice(trajectory: Trajectory, tokenizer: Tokenizer, stop: Sequence[str], seconds: float) -> Choice:
    """Returns the choice of the agent: the answer as content, cut at the first of the client's stop strings."""
    content = answer_text(trajectory, tokenizer)
    content = content[: min((content.find(text) for text in stop if text in content), default=len(content))]
    sampled = trajectory.sampled_tokens
    kinds = {kind: count for kind, count in tool_kinds(trajectory.turns, trajectory.tools).items() if count}
    finish = "" if trajectory.finish is None else trajectory.finish.value
    summary = {
        "trajectory_id": trajectory.id,
        "finish": finish,
        "turns": len(trajectory.turns),
        "tool_calls": trajectory.tool_calls,
        "tools": kinds,
        "images": sum(len(turn.images) for turn in trajectory.turns),
        "observation_tokens": len(trajectory.response_ids) - sampled,
        "seconds": round(seconds, 3),
    }
    return Choice(
        content,
        "stop" if trajectory.finish is Finish.ANSWER else "length",
        sampled,
        reasoning=trajectory_text(trajectory.turns),
        reasoning_tokens=max(0, sampled - len(tokenizer.encode(content))),
        extra={"dv2": summary},
    )


def trajectory_ids(trajectory: Trajectory) -> dict[str, Any]:
    """Returns the ids after the prompt with loss mask and log-probs, for a client that trains on them."""
    start = trajectory.prompt_tokens
    return {
        "token_ids": trajectory.response_ids,
        "loss_mask": trajectory.loss_mask[start:],
        "token_logprobs": trajectory.logprobs[start:],
    }


def logprobs_content(
    token_ids: Sequence[int], logprobs: Sequence[float], tokenizer: Tokenizer
) -> dict[str, list[dict[str, Any]]]:
    """Returns the field `logprobs`: per sampled token its text, log-prob (natural, as sampled) and bytes."""
    entries = []
    for id_, logprob in zip(token_ids, logprobs, strict=True):
        data = tokenizer.token_bytes(id_)
        text = data.decode("utf-8", errors="replace")
        entries.append({"token": text, "logprob": logprob, "bytes": list(data), "top_logprobs": []})
    return {"content": entries}


def usage(prompt_tokens: int, choices: Sequence[Choice]) -> dict[str, Any]:
    """Returns the token counts of a response; the prompt counts once, whatever the number of choices."""
    completion = sum(choice.completion_tokens for choice in choices)
    reasoning = sum(choice.reasoning_tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def completion(
    head: ResponseHead, choices: Sequence[Choice], prompt_tokens: int, prompt_ids: Sequence[int] | None = None
) -> dict[str, Any]:
    """Returns the body of a response that is not streamed."""
    body = head.to_dict("chat.completion") | {
        "choices": [_choice(index, choice) for index, choice in enumerate(choices)],
        "usage": usage(prompt_tokens, choices),
    }
    return body if prompt_ids is None else body | {"prompt_token_ids": list(prompt_ids)}


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
    if choice.reasoning is not None:
        message["reasoning_content"] = choice.reasoning
    return {
        "index": index,
        "message": message,
        "finish_reason": choice.finish_reason,
        "logprobs": choice.logprobs,
        **choice.extra,
    }


def chunk(
    head: ResponseHead,
    index: int,
    delta: dict[str, Any],
    finish_reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Returns one chunk of a stream."""
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs, **extra}
    return head.to_dict("chat.completion.chunk") | {"choices": [choice]}


def usage_chunk(head: ResponseHead, prompt_tokens: int, choices: Sequence[Choice]) -> dict[str, Any]:
    """Returns the last chunk of a stream that includes the usage; it has no choices."""
    return head.to_dict("chat.completion.chunk") | {"choices": [], "usage": usage(prompt_tokens, choices)}


def event(body: dict[str, Any]) -> bytes:
    """Encodes a chunk, or the body of an error, as a server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
