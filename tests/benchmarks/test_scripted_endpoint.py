"""Tests the endpoint with which data construction is measured. Catches: a question that it does not recognize, a teacher that
forgets what it has observed, faults that differ between two requests for the same turn, and statuses that are not counted."""

from __future__ import annotations

import dataclasses

import httpx
import pytest

from benchmarks import curation
from benchmarks.scripted_endpoint import Faults, ScriptedModels, serve
from dv2_jax.agent.prompts import build_messages
from dv2_jax.data.chat_encoder import IMAGE_MARKER
from dv2_jax.endpoint import chat_content
from dv2_jax.toy.tasks import make_questions

SIZE = 30
QUESTIONS = list(make_questions("train", SIZE, 0))


def request(question, model="teacher", *after):
    messages, used = [], 0
    for message in build_messages(question, "brief"):
        count = message["content"].count(IMAGE_MARKER)
        content = chat_content(message["content"], question.images[used : used + count], IMAGE_MARKER)
        messages.append({"role": message["role"], "content": content})
        used += count
    return {"model": model, "messages": [*messages, *after]}


def test_every_question_is_recognized_and_a_third_is_solved_only_with_tools():
    models = ScriptedModels(SIZE)
    solved = {False: 0, True: 0}
    for question in QUESTIONS:
        body = request(question, "base")
        for has_tools in (False, True):
            asked = body if has_tools else {**body, "messages": body["messages"][1:]}
            reply = models.reply(asked)
            assert reply != "Yes", question.text
            solved[has_tools] += f"<answer>{question.answer}</answer>" in reply
    assert 0 < solved[False] < solved[True] < SIZE
    assert models.reply({"model": "base", "messages": [{"role": "user", "content": "Reply with Yes."}]}) == "Yes"
    other = dataclasses.replace(QUESTIONS[0], text="Something else?")
    assert models.reply(request(other)) == "Yes"


def test_the_teacher_goes_on_from_what_it_observed():
    models = ScriptedModels(SIZE)
    question = next(question for question in QUESTIONS if question.skill == "reasoning")
    first = models.reply(request(question))
    assert "<code>" in first and first == models.reply(request(question))
    turn = {"role": "assistant", "content": first}
    observed = {"role": "user", "content": f"Code execution result:\nstdout:\n```\n{question.answer}\n```\n"}
    last = models.reply(request(question, "teacher", turn, observed))
    assert "<answer>" in last and "<code>" not in last and last != models.reply(request(question))
    wrong = ScriptedModels(SIZE, faults=Faults(wrong=1.0)).reply(request(question, "teacher", turn, observed))
    assert "<answer>something else</answer>" in wrong
    assert "</code>" not in ScriptedModels(SIZE, faults=Faults(malformed=1.0)).reply(request(question))


def test_requests_fail_as_often_as_asked_and_are_counted():
    with serve(ScriptedModels(SIZE, faults=Faults(overload=0.2, failing=0.3))) as (url, log):
        statuses = []
        for number in range(200):
            body = request(QUESTIONS[number % SIZE], "base") | {"seed": number}
            try:
                statuses.append(httpx.post(f"{url}/chat/completions", json=body).status_code)
            except httpx.HTTPError:
                statuses.append(0)
        assert len(log.requests) == len(set(log.requests)) == 200
    assert {status: statuses.count(status) for status in (0, 200, 429, 500)} == log.statuses
    assert statuses.count(429) == pytest.approx(40, abs=20) and 30 < statuses.count(0) + statuses.count(500) < 90


@pytest.mark.long
def test_kills_and_failing_requests_change_no_byte(tmp_path):
    """The measurement at a smaller size; it raises for a repeated request and for other bytes."""
    arguments = curation.parser().parse_args(["kills", "--questions=10", "--kills=5"])
    result = curation.kills(arguments, tmp_path)
    assert result["identical"] and result["kills"] >= 3 and result["statuses"].get(500)


@pytest.mark.long
def test_the_stages_without_a_model_run_in_shards(tmp_path):
    result = curation.scale(curation.parser().parse_args(["scale", "--rows=400"]), tmp_path)
    assert set(result) == {"rows", "read, 1 shard", "read, 2 shards", "deduplicate", "mix"}
