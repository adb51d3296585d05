"""Records of an evaluation: append-only lines from which every table is computed, so that scoring needs no inference.

A run directory has two files per evaluated policy and benchmark (named by `telemetry.stage_titles.benchmark_stage`)::

    trajectories/<name>.jsonl   one line per answer: a trajectory record (`telemetry.trajectories`) with a field `answer`
    scores/<name>.jsonl         one line per score of an answer by a scorer

A line is complete or ignored: a process killed while it writes leaves at most one incomplete line. Of several lines with
the same key, the newest counts. Host N of several appends to files of the same name in `host-N/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dv2_jax.evaluation.benchmarks.benchmark import Score


@dataclass(frozen=True)
class AnswerInfo:
    """The field `answer` of a trajectory record: the facts of one answer that a trajectory does not have.

    Attributes:
        benchmark: its name.
        question_id: unique in the benchmark.
        sample: index among the samples of the question, from 0.
        attempt: 1 for the first attempt; a failed answer is attempted again.
        prompt_digest: SHA-256 of the prompt: messages, image digests, tools and sampling parameters.
        model: `model.init`, or the name of the model at the endpoint.
        tools: names of the tools that the policy had.
        failure: empty, or the reason for which there is no answer.
        final: content of the final `<answer>`; None where there is none.
        prompt_tokens, completion_tokens: as sampled, or as the endpoint reports them, over all turns.
        seconds: from the first request to the last token, tools included.
        tool_counts: calls per class of use, as `agent.tool_use.tool_kinds` counts them.
        requests: number of requests to the endpoint; 0 with the own engine.
        cached_tokens: those of `prompt_tokens` that the endpoint had cached and may bill for less.
        text: for an endpoint, everything after the prompt; with the own engine it is decoded from the token ids.
        weights: fingerprint of the weights (`checkpoint.policy_spec.weights_fingerprint`); empty for an endpoint.
    """

    benchmark: str
    question_id: str
    sample: int
    attempt: int
    prompt_digest: str
    model: str
    tools: tuple[str, ...]
    failure: str = ""
    final: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    tool_counts: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    text: str = ""
    weights: str = ""
    cached_tokens: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """(question id, sample)."""
        return self.question_id, self.sample

    def to_dict(self) -> dict[str, Any]:
        """Converts to JSON types."""
        return asdict(self) | {"tools": list(self.tools)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AnswerInfo:
        """Converts the field `answer` of a stored record; fields of a newer version are ignored."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**known | {"tools": tuple(known.get("tools", ()))})


@dataclass(frozen=True)
class JudgeReply:
    """One exchange with the judge: what it was asked (as a digest) and what it replied."""

    model: str
    rubric: str
    prompt_digest: str
    reply: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class ScoreRecord:
    """One score of one answer.

    `answer_attempt` is the attempt of the answer that was scored; `scorer` is `official`, `deepeyesv2`, or either with
    the judge and rubric that could take part (`official+qwen2.5-72b/consistency`). `basis` is the digest of what the
    score was computed from (the answer and `reward.*`): a score with another basis is computed again. The first scorer
    of a run also stores the reward and its parts; both are empty where the answer has no verdict.
    """

    benchmark: str
    question_id: str
    sample: int
    answer_attempt: int
    scorer: str
    score: Score
    judge: tuple[JudgeReply, ...] = ()
    basis: str = ""
    reward: float | None = None
    reward_parts: dict[str, Any] | None = None

    @property
    def key(self) -> tuple[str, int, str]:
        """(question id, sample, scorer)."""
        return self.question_id, self.sample, self.scorer

    def to_dict(self) -> dict[str, Any]:
        """Converts to JSON types."""
        return asdict(self) | {"outcome": self.score.outcome}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoreRecord:
        """Converts a stored line."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        score = {name: value for name, value in known["score"].items() if name in Score.__dataclass_fields__}
        replies = tuple(JudgeReply(**reply) for reply in known.get("judge", ()))
        return cls(**known | {"score": Score(**score), "judge": replies})
