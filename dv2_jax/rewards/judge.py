"""A language model as judge of answers, behind any OpenAI-compatible endpoint.

Two styles, as released: *consistency* for perception and search (verdict in `\\boxed{Yes}`) and *math* for reason (TRUE
or FALSE under a heading). The wording is ours. A request that fails after all retries raises `JudgeUnavailable` and is
never a verdict; without any verdict for `outage_s` seconds, requests raise `JudgeOutage`, which ends the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dv2_jax.config import ServiceOutage
from dv2_jax.endpoint import ChatEndpoint, EndpointNames, EndpointOutage, EndpointUnavailable

API_KEY_VARIABLE = "DV2_JUDGE_API_KEY"
_HEADING = "## Equivalence Judgement"

_CONSISTENCY_SYSTEM = """\
You check whether a model's answer agrees with a reference answer. Do not solve the question yourself; only \
compare the two answers, part by part where the question has several. One part that disagrees makes the whole \
inconsistent.

- Short free-form answers: the key points and the meaning must agree.
- Derivations and proofs: the conclusion must agree, and so must the derivation if the reference gives one.
- Objective answers: layout, LaTeX, letter case and spelled-out numbers do not matter ("6 trees", "6" and "six" \
are the same).
- Multiple choice: the same label is enough. Several blanks: their order matters. True/false and \
classification: the answer must be explicit and equal. Numbers of pictures: only compare them.

Reason briefly inside <think> </think>. Then write \\boxed{Yes} if the answers agree, else \\boxed{No}."""

_CONSISTENCY_USER = "[Question]: {question}\n[Reference answer]: {answer}\n[Model's answer]: {prediction}"

_MATH_USER = """\
You are a teacher who grades final answers in mathematics. Decide whether the student's answer equals the \
reference answer; the reference is always right. Different notation for the same thing (LaTeX, fractions, order \
of terms) is equal; an almost right answer is not.

Write nothing but the heading "{heading}" and below it TRUE or FALSE.

Question:
{question}

Reference answer:
{answer}

Student's answer:
{prediction}"""


class JudgeUnavailable(RuntimeError):
    """The endpoint gave no verdict after all retries."""


class JudgeOutage(ServiceOutage):
    """The endpoint has given no verdict for so long that the run must stop."""


@dataclass
class Judge:
    """A thread-safe client. With an empty `model` it uses the first model that the endpoint lists."""

    base_url: str  # up to and including /v1
    model: str = ""
    timeout_s: float = 120.0  # per request
    attempts: int = 8  # per question; as released for the math judge
    longest_wait_s: float = 30.0  # between two attempts
    outage_s: float = 300.0  # without one verdict, from the first failed question on
    probe_timeout_s: float = 60.0  # the first request may load the model

    def __post_init__(self) -> None:
        self.endpoint = judge_endpoint(
            self.base_url,
            self.model,
            timeout_s=self.timeout_s,
            attempts=self.attempts,
            longest_wait_s=self.longest_wait_s,
            outage_s=self.outage_s,
            probe_timeout_s=self.probe_timeout_s,
        )

    def consistent(self, question: str, answer: str, prediction: str) -> bool:
        """Returns the verdict of the consistency judge."""
        messages = consistency_messages(question, answer, prediction)
        return parse_consistency(self._ask(messages, temperature=0.3, max_tokens=8192))

    def same_mathematics(self, question: str, answer: str, prediction: str) -> bool:
        """Returns the verdict of the math judge; an ambiguous one counts as FALSE, as released."""
        return parse_equivalence(self._ask(math_messages(question, answer, prediction), temperature=0.5)) is True

    def probe(self) -> None:
        """Sends the shortest possible chat request, so that a wrong address, key or model name fails at the start.

        Raises:
            ConfigError: the endpoint cannot be used.
        """
        self.endpoint.probe()

    def close(self) -> None:
        """Closes the connections; the judge gives no further verdict."""
        self.endpoint.close()

    def _ask(self, messages: list[dict[str, str]], **sampling: float) -> str:
        with raises_judge_errors():
            return self.endpoint.complete(messages, **sampling).text.strip()


def judge_endpoint(base_url: str, model: str, **settings: Any) -> ChatEndpoint:
    """Returns the client of a judge's endpoint. `settings` are those of `ChatEndpoint`, among them `outage_s`."""
    names = EndpointNames(
        "the judge",
        "verdict",
        "reward.judge_base_url",
        "reward.judge_model",
        f"reward.judge_outage_s = {settings['outage_s']:g}",
        API_KEY_VARIABLE,
    )
    # A refused key is no outage at once: the rules go on deciding where they can.
    return ChatEndpoint(base_url, model, names=names, stop_on_refused_key=False, **settings)


@contextmanager
def raises_judge_errors() -> Iterator[None]:
    """Converts the errors of the endpoint to those of a judge.

    Raises:
        JudgeUnavailable: no reply after all attempts.
        JudgeOutage: none for `outage_s`.
    """
    try:
        yield
    except EndpointUnavailable as error:
        raise JudgeUnavailable(str(error)) from error
    except EndpointOutage as error:
        raise JudgeOutage(str(error)) from error


def consistency_messages(question: str, answer: str, prediction: str) -> list[dict[str, str]]:
    """Returns the prompt of the consistency judge."""
    user = _CONSISTENCY_USER.format(question=question, answer=answer, prediction=prediction)
    return [{"role": "system", "content": _CONSISTENCY_SYSTEM}, {"role": "user", "content": user}]


def math_messages(question: str, answer: str, prediction: str) -> list[dict[str, str]]:
    """Returns the prompt of the math judge."""
    user = _MATH_USER.format(heading=_HEADING, question=question, answer=answer, prediction=bare_expression(prediction))
    return [{"role": "user", "content": user}]


def parse_consistency(response: str) -> bool:
    """Returns whether the last `\\boxed{...}`, inside the result tags where the judge uses them, contains Yes.

    The judge's reasoning is removed first, so that a "Yes" in it is no verdict.
    """
    return "Yes" in consistency_verdict(response)


def consistency_verdict(response: str) -> str:
    """Returns the part of a consistency judge's reply that holds its verdict."""
    verdict = response.rsplit("</think>", 1)[-1]
    if "<最终结果>" in verdict:
        verdict = re.split(r"<[\\/]最终结果>", verdict.rsplit("<最终结果>", 1)[-1])[0]
    if "boxed{" in verdict:
        verdict = verdict.rsplit("boxed{", 1)[-1].split("}", 1)[0]
    return verdict


def parse_equivalence(response: str) -> bool | None:
    """Returns the verdict after the last heading; None where the text contains neither TRUE nor FALSE, or both."""
    verdict = response.rsplit(_HEADING, 1)[-1].lower()
    says = "true" in verdict, "false" in verdict
    return None if says[0] == says[1] else says[0]


def bare_expression(prediction: str) -> str:
    """Returns a student's answer without its left-hand side and LaTeX wrapping.

    Milder than the released normalization, which also deletes spaces and words like "points", and with them the
    meaning of answers in words.
    """
    text = prediction.rsplit("=", 1)[-1].strip().strip("$").strip()
    text = re.sub(r"^\\boxed\s*\{(.*)\}$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\\(?:text|textbf|mathrm|overline)\s*\{([^{}]*)\}", r"\1", text)
    return text.strip() or prediction.strip()
