"""A language model as judge of answers, behind any OpenAI-compatible endpoint (spec 6.4).

Two styles, as released: *consistency* for perception and search (verdict in ``\\boxed{Yes}``) and *math* for
reason (TRUE or FALSE under a heading). The wording is ours. Nothing is contacted before the first question; an
outage is an error of the infrastructure (`JudgeUnavailable`), never a verdict.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, field

import httpx
import tenacity

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


@dataclass
class Judge:
    """A client; thread-safe. ``model`` empty: the first model that the endpoint lists."""

    base_url: str  # up to and with /v1
    model: str = ""
    timeout_s: float = 120.0  # per request
    attempts: int = 8  # per question; as released for the math judge
    longest_wait_s: float = 30.0  # between two attempts
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _client: httpx.Client | None = field(default=None, repr=False)

    def consistent(self, question: str, answer: str, prediction: str) -> bool:
        """The verdict of the consistency judge."""
        user = _CONSISTENCY_USER.format(question=question, answer=answer, prediction=prediction)
        messages = [{"role": "system", "content": _CONSISTENCY_SYSTEM}, {"role": "user", "content": user}]
        return parse_consistency(self._ask(messages, temperature=0.3, max_tokens=8192))

    def same_mathematics(self, question: str, answer: str, prediction: str) -> bool:
        """The verdict of the math judge; an ambiguous one counts as FALSE, as released."""
        user = _MATH_USER.format(
            heading=_HEADING, question=question, answer=answer, prediction=bare_expression(prediction)
        )
        return parse_equivalence(self._ask([{"role": "user", "content": user}], temperature=0.5)) is True

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _ask(self, messages: list[dict], **sampling) -> str:
        retry = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_exponential_jitter(initial=0.5, max=self.longest_wait_s),
            retry=tenacity.retry_if_exception(_passing),
            reraise=True,
        )
        try:
            return retry(self._ask_once, messages, sampling)
        except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
            raise JudgeUnavailable(
                f"the judge at {self.base_url} gave no verdict in {self.attempts} attempts: {error!r}"
            ) from error

    def _ask_once(self, messages: list[dict], sampling: dict) -> str:
        client = self._connect()
        if not self.model:
            listed = client.get("models")
            listed.raise_for_status()
            self.model = listed.json()["data"][0]["id"]
        response = client.post("chat/completions", json={"model": self.model, "messages": messages, **sampling})
        response.raise_for_status()
        content = response.json()["choices"][0]["message"]["content"]
        if not isinstance(content, str) or not content.strip():
            raise ValueError("empty completion")
        return content.strip()

    def _connect(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(
                    base_url=self.base_url.rstrip("/") + "/",
                    headers={"Authorization": f"Bearer {os.environ.get(API_KEY_VARIABLE, 'EMPTY')}"},
                    timeout=self.timeout_s,
                    limits=httpx.Limits(max_connections=64),
                )
            return self._client


def _passing(error: BaseException) -> bool:
    """Whether trying again may help: a refused request stays refused, save for rate limits."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 409, 425, 429) or error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, KeyError, IndexError, TypeError, ValueError))


def parse_consistency(response: str) -> bool:
    """The verdict: the last ``\\boxed{...}``, inside the result tags where the judge uses them, says Yes.

    The judge's reasoning is cut away first, so that a "Yes" in it is no verdict.
    """
    verdict = response.rsplit("</think>", 1)[-1]
    if "<最终结果>" in verdict:
        verdict = re.split(r"<[\\/]最终结果>", verdict.rsplit("<最终结果>", 1)[-1])[0]
    if "boxed{" in verdict:
        verdict = verdict.rsplit("boxed{", 1)[-1].split("}", 1)[0]
    return "Yes" in verdict


def parse_equivalence(response: str) -> bool | None:
    """TRUE or FALSE after the last heading; None where it says neither, or both."""
    verdict = response.rsplit(_HEADING, 1)[-1].lower()
    says = "true" in verdict, "false" in verdict
    return None if says[0] == says[1] else says[0]


def bare_expression(prediction: str) -> str:
    """A student's answer without its left-hand side and LaTeX wrapping.

    Milder than the released normalization, which also deletes spaces and words like "points", and with them the
    meaning of answers in words.
    """
    text = prediction.rsplit("=", 1)[-1].strip().strip("$").strip()
    text = re.sub(r"^\\boxed\s*\{(.*)\}$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\\(?:text|textbf|mathrm|overline)\s*\{([^{}]*)\}", r"\1", text)
    return text.strip() or prediction.strip()
