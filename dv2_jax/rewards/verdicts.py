"""Decides whether a trajectory's answer is right: the configured verdict sources are asked in order.

The released order is the rules first, then the judge for whatever the rules do not accept.
"""

from __future__ import annotations

import functools

from dv2_jax.config import RewardConfig
from dv2_jax.data.question import Question
from dv2_jax.rewards.judge import Judge
from dv2_jax.rewards.matching import answers_match
from dv2_jax.rewards.reward_registry import FinalAnswer, VerdictSource, get_verdict_source, verdict_source
from dv2_jax.rewards.rules import final_answer, is_too_long


def is_correct(question: Question, text: str, config: RewardConfig) -> bool:
    """Returns whether the final answer in a response's text is right. An answer that no source decides is wrong.

    Raises:
        JudgeUnavailable: the judge gave no verdict.
        JudgeOutage: it has given none for `config.judge_outage_s`.
        ValueError: the question's reference does not suit its verifier.
    """
    return first_verdict(question, text, config) is True


def first_verdict(question: Question, text: str, config: RewardConfig) -> bool | None:
    """Returns the verdict of the first source that decides; None if none does. Raises as `is_correct`."""
    answer = FinalAnswer(question, final_answer(text))
    if is_too_long(answer.prediction, question.data_source, config):
        return False
    for source in verdict_sources(config):
        verdict = source(answer, config)
        if verdict is not None:
            return verdict
    return None


def verdict_sources(config: RewardConfig) -> list[VerdictSource]:
    """Returns the functions of `config.verdicts`.

    Raises:
        ConfigError: a source is unknown.
    """
    return [get_verdict_source(name) for name in config.verdicts]


@verdict_source("rules")
def rules_verdict(answer: FinalAnswer, config: RewardConfig) -> bool | None:
    """Accepts what the strict rules accept, and rejects numbers that differ; anything else is left to the next source."""
    question = answer.question
    if answers_match(answer.prediction, question.answer, question.verifier, question.meta):
        return True
    return False if question.verifier == "number" else None


@verdict_source("judge")
def judge_verdict(answer: FinalAnswer, config: RewardConfig) -> bool | None:
    """Asks the configured judge, in the style of the question's split.

    A missing perception or search answer is put to the judge as "None", as released; a missing reason answer is wrong.
    """
    if not config.judge_base_url:
        return None
    question, prediction = answer.question, answer.prediction
    judge = judge_client(config)
    if question.data_source == "reason":
        return bool(prediction) and judge.same_mathematics(question.text, question.answer, prediction)
    return judge.consistent(question.text, question.answer, str(prediction))


def judge_client(config: RewardConfig) -> Judge:
    """Returns the one client of the configured endpoint."""
    return _client(config.judge_base_url, config.judge_model, config.judge_outage_s)


def probe_judge(config: RewardConfig) -> None:
    """Sends one short request to the judge, if the run uses one.

    Raises:
        ConfigError: the endpoint cannot be used; the message says why and what to change.
    """
    if config.judge_base_url and "judge" in config.verdicts:
        judge_client(config).probe()


@functools.cache
def _client(base_url: str, model: str, outage_s: float) -> Judge:
    return Judge(base_url, model, outage_s=outage_s)
