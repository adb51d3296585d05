"""A language model as judge of answers, behind any OpenAI-compatible endpoint.

Two styles, as released: *consistency* for perception and search (verdict in `\\boxed{Yes}`) and *math* for reason (TRUE
or FALSE under a heading). The wording is ours. A request that fails after all retries raises `JudgeUnavailable` and is
never a verdict; without any verdict for `outage_s` seconds, requests raise `JudgeOutage`, which ends the run.
"""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass, field

import httpx
import tenacity

from dv2_jax.config import ConfigError
from dv2_jax.parallel.outage import ServiceOutage

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
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _client: httpx.Client | None = field(default=None, repr=False)
    _failing_since: float | None = field(default=None, repr=False)  # start of the first question without a verdict
    _last_verdict: float = field(default=-float("inf"), repr=False)

    def consistent(self, question: str, answer: str, prediction: str) -> bool:
        """Returns the verdict of the consistency judge."""
        user = _CONSISTENCY_USER.format(question=question, answer=answer, prediction=prediction)
        messages = [{"role": "system", "content": _CONSISTENCY_SYSTEM}, {"role": "user", "content": user}]
        return parse_consistency(self._ask(messages, temperature=0.3, max_tokens=8192))

    def same_mathematics(self, question: str, answer: str, prediction: str) -> bool:
        """Returns the verdict of the math judge; an ambiguous one counts as FALSE, as released."""
        user = _MATH_USER.format(
            heading=_HEADING, question=question, answer=answer, prediction=bare_expression(prediction)
        )
        return parse_equivalence(self._ask([{"role": "user", "content": user}], temperature=0.5)) is True

    def probe(self) -> None:
        """Sends the shortest possible chat request, so that a wrong address, key or model name fails at the start.

        Raises:
            ConfigError: the endpoint cannot be used.
        """
        served: list[str] = []
        try:
            listed = self._connect().get("models", timeout=self.probe_timeout_s)
            if listed.status_code < 400:
                served = [str(entry["id"]) for entry in listed.json()["data"]]
            elif listed.status_code != 404 or not self.model:  # some gateways do not list their models
                listed.raise_for_status()
            if not self.model and not served:
                raise ConfigError(
                    f"reward.judge_base_url = {self.base_url}: no model is served there; name reward.judge_model"
                )
            if self.model and served and self.model not in served:
                raise ConfigError(
                    f"reward.judge_model = {self.model!r} is not served at {self.base_url}, which has {', '.join(served[:8])}"
                )
            self._probe_chat()
        except httpx.HTTPStatusError as error:
            raise ConfigError(self._refusal(error.response)) from None
        except httpx.HTTPError as error:
            raise ConfigError(
                f"reward.judge_base_url = {self.base_url}: no connection to the judge ({_reason(error)});"
                " start it, or correct the address"
            ) from None
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"reward.judge_base_url = {self.base_url} does not answer like an OpenAI-compatible API"
                f" ({_reason(error)}); the address ends with /v1"
            ) from None

    def _probe_chat(self) -> None:
        retry = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(3),
            wait=tenacity.wait_exponential_jitter(initial=0.5, max=min(4.0, self.longest_wait_s)),
            retry=tenacity.retry_if_exception(lambda error: _is_transient(error) and not _is_refused(error)),
            reraise=True,
        )
        messages = [{"role": "user", "content": "Reply with Yes."}]
        retry(self._ask_once, messages, {"max_tokens": 64}, timeout=self.probe_timeout_s)

    def _refusal(self, response: httpx.Response) -> str:
        status = response.status_code
        if status in (401, 403):
            return f"reward.judge_base_url = {self.base_url}: {status}, the API key is refused; set {API_KEY_VARIABLE}"
        if status == 404:
            return (
                f"reward.judge_base_url = {self.base_url}: 404 for {response.url.path}; the address ends with /v1, and"
                f" reward.judge_model = {self.model!r} must be served there"
            )
        return (
            f"reward.judge_base_url = {self.base_url}: {status} from {response.url.path}: {response.text[:200].strip()}"
        )

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _ask(self, messages: list[dict], **sampling: float) -> str:
        started = time.monotonic()
        retry = tenacity.Retrying(
            stop=lambda state: state.attempt_number >= self.attempts or self._silent_s(started) >= self.outage_s,
            wait=tenacity.wait_exponential_jitter(initial=0.5, max=self.longest_wait_s),
            retry=tenacity.retry_if_exception(_is_transient),
            reraise=True,
        )
        try:
            reply = retry(self._ask_once, messages, sampling)
        except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
            self._note_failure(started, error)
            raise JudgeUnavailable(
                f"the judge at {self.base_url} gave no verdict in {self.attempts} attempts: {error!r}"
            ) from error
        with self._lock:
            self._failing_since, self._last_verdict = None, time.monotonic()
        return reply

    def _silent_s(self, started: float) -> float:
        """Returns the seconds without a verdict while questions were open; `started`: of a question that is open now."""
        with self._lock:
            first = min(started, self._failing_since if self._failing_since is not None else started)
            return time.monotonic() - max(first, self._last_verdict)

    def _note_failure(self, started: float, error: Exception) -> None:
        silent_s = self._silent_s(started)
        with self._lock:
            self._failing_since = started if self._failing_since is None else min(started, self._failing_since)
        if silent_s >= self.outage_s:
            raise JudgeOutage(
                f"the judge at {self.base_url} has given no verdict for {silent_s:.0f} s"
                f" (reward.judge_outage_s = {self.outage_s:g}); last error: {_reason(error)}"
            ) from error

    def _ask_once(self, messages: list[dict], sampling: dict, timeout: float | None = None) -> str:
        client = self._connect()
        limit = {} if timeout is None else {"timeout": timeout}
        if not self.model:
            listed = client.get("models", **limit)
            listed.raise_for_status()
            self.model = listed.json()["data"][0]["id"]
        # A policy can write lone surrogates, which UTF-8 cannot encode.
        readable = [
            message | {"content": message["content"].encode("utf-8", "replace").decode()} for message in messages
        ]
        response = client.post(
            "chat/completions", json={"model": self.model, "messages": readable, **sampling}, **limit
        )
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


def _is_transient(error: BaseException) -> bool:
    """Returns whether a retry may help: a rejected request stays rejected, except for rate limits and server errors."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 409, 425, 429) or error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, KeyError, IndexError, TypeError, ValueError))


def _is_refused(error: BaseException) -> bool:
    return isinstance(error, (httpx.ConnectError, httpx.UnsupportedProtocol))


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def parse_consistency(response: str) -> bool:
    """Returns whether the last `\\boxed{...}`, inside the result tags where the judge uses them, contains Yes.

    The judge's reasoning is removed first, so that a "Yes" in it is no verdict.
    """
    verdict = response.rsplit("</think>", 1)[-1]
    if "<最终结果>" in verdict:
        verdict = re.split(r"<[\\/]最终结果>", verdict.rsplit("<最终结果>", 1)[-1])[0]
    if "boxed{" in verdict:
        verdict = verdict.rsplit("boxed{", 1)[-1].split("}", 1)[0]
    return "Yes" in verdict


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
