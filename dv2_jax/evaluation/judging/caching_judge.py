"""The judge of an evaluation: at temperature 0, every reply stored, and no request whose reply is stored sent again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dv2_jax.config import Config
from dv2_jax.data.question import Question
from dv2_jax.endpoint import ChatEndpoint, ReplyJournal
from dv2_jax.evaluation.judging.rubric_registry import get_rubric
from dv2_jax.evaluation.records import JudgeReply
from dv2_jax.rewards.judge import JudgeUnavailable, judge_endpoint, raises_judge_errors


class CachingJudge:
    """The judge of a run. `for_question` returns the judge of one answer; any number of them may be used in threads.

    Args:
        endpoint: its journal makes a repeated judgment free.
        rubric: the rubric of `verdict` unless a benchmark names another one.

    Raises:
        ConfigError: the rubric is unknown.
    """

    def __init__(self, endpoint: ChatEndpoint, rubric: str):
        get_rubric(rubric)
        self.endpoint, self.rubric = endpoint, rubric

    @classmethod
    def open(cls, config: Config, journal: str | Path, model: str = "") -> CachingJudge:
        """Returns the judge at `reward.judge_base_url`; its replies are stored in the file `journal`.

        Args:
            model: its name, if `reward.judge_model` leaves it to the endpoint.
        """
        reward = config.reward
        endpoint = judge_endpoint(
            reward.judge_base_url,
            reward.judge_model or model,
            journal=ReplyJournal(journal),
            timeout_s=120.0,
            outage_s=reward.judge_outage_s,
        )
        return cls(endpoint, config.eval.judge_rubric)

    def for_question(self, question: Question | None = None) -> QuestionJudge:
        """Returns the judge of one answer, which keeps its replies."""
        return QuestionJudge(self)

    def close(self) -> None:
        """Closes the connections and the journal."""
        self.endpoint.close()
        if self.endpoint.journal is not None:
            self.endpoint.journal.close()


class QuestionJudge:
    """The judge of one answer: an `AnswerJudge` whose `replies` are stored with the score."""

    def __init__(self, judge: CachingJudge):
        self._judge = judge
        self.replies: list[JudgeReply] = []

    def ask(self, messages: Sequence[Mapping[str, Any]], **sampling: Any) -> str:
        """Returns the reply to a prompt of a benchmark's own.

        Raises:
            JudgeUnavailable: the endpoint gave no reply, or an incomplete one.
            JudgeOutage: it has given none for `reward.judge_outage_s`.
        """
        return self._exchange(messages, "", sampling)

    def verdict(self, question: str, references: Sequence[str], answer: str, rubric: str = "") -> bool | None:
        """Returns the verdict under a rubric, by default that of the run; None if the reply has none.

        Raises:
            JudgeUnavailable, JudgeOutage: as `ask`.
            ConfigError: the rubric is unknown.
        """
        name = rubric or self._judge.rubric
        prompt = get_rubric(name)(question, references, answer)
        return prompt.read(self._exchange(prompt.messages, name, prompt.sampling))

    def _exchange(self, messages: Sequence[Mapping[str, Any]], rubric: str, sampling: Mapping[str, Any]) -> str:
        endpoint = self._judge.endpoint
        with raises_judge_errors():
            reply = endpoint.complete(messages, **{"temperature": 0.0} | dict(sampling))
        self.replies.append(
            JudgeReply(endpoint.model, rubric, reply.digest, reply.text, reply.prompt_tokens, reply.completion_tokens)
        )
        if reply.failure:
            raise JudgeUnavailable(reply.failure)
        return reply.text.strip()
