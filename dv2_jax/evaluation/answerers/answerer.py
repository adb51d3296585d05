"""The interface of an answerer: it turns requests into answers, whichever model writes them.

One answerer serves one policy with one set of tools; `evaluation.answer_stage` asks it for what is missing in the
records and stores every answer as soon as it is yielded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import dataclass

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.data.question import Question


@dataclass(frozen=True)
class AnswerRequest:
    """A request for one answer.

    Attributes:
        question: as it is asked: its text is the prompt of the benchmark.
        sample: index among the samples of the question, from 0.
        attempt: 1 for the first attempt.
        seed: of the sample's random numbers: equal seeds give equal samples.
        prompt_digest: see `evaluation.prompt_digest`.
    """

    question: Question
    sample: int = 0
    attempt: int = 1
    seed: int = 0
    prompt_digest: str = ""

    @property
    def id(self) -> str:
        """The id of the trajectory: the question's id, followed by `#sample` from the second sample on."""
        return answer_id(self.question.id, self.sample)


def answer_id(question_id: str, sample: int) -> str:
    """Returns the id of the trajectory of a sample, which also names its record."""
    return f"{question_id}#{sample}" if sample else question_id


@dataclass(frozen=True)
class Answer:
    """The result of a request, answered or failed.

    Attributes:
        trajectory: turns, finish and tools. Its token ids, mask and log-probs are empty if an endpoint sampled them.
        failure: empty, or the reason for which there is no answer; the finish of the trajectory is then LOST.
        seconds: from the first request to the last token, tools included.
        prompt_tokens, completion_tokens: over all turns, as sampled or as the endpoint reports them.
        requests: number of requests to the endpoint; 0 with the own engine.
        cached_tokens: those of `prompt_tokens` that the endpoint had cached.
        text: everything after the prompt, observations included; empty: decoded from the token ids of the trajectory.
    """

    request: AnswerRequest
    trajectory: Trajectory
    failure: str = ""
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    text: str = ""
    cached_tokens: int = 0


class Answerer(ABC):
    """Answers questions with one model and one set of tools."""

    @abstractmethod
    def answers(self, requests: Iterable[AnswerRequest]) -> Generator[Answer, None, None]:
        """Yields one answer per request as it ends, in any order.

        Requests are taken from the iterable only as there is room for them, and nothing keeps an answer that has been
        yielded. A failure of one request (an endpoint that gives no reply after all retries, a lost tool) is an answer
        with a `failure`. Closing the generator abandons the requests in flight.

        Raises:
            ServiceOutage: the endpoint or the tools service has given no result for too long.
        """
