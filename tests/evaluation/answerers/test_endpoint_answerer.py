"""Tests of answers by an endpoint: a local HTTP server as the model, and a real tools service."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest
from PIL import Image

from benchmarks.chat_server import RESET, Raw, completion, error
from dv2_jax.agent.trajectory import Finish
from dv2_jax.config import AgentConfig, ImageConfig, ToolsConfig
from dv2_jax.endpoint import ChatEndpoint, EndpointOutage, ReplyJournal
from dv2_jax.evaluation.answerers.answerer import AnswerRequest
from dv2_jax.evaluation.answerers.endpoint_answerer import EndpointAnswerer, EndpointSampling
from dv2_jax.evaluation.baselines import RefusingTools
from dv2_jax.rewards import final_answer
from dv2_jax.rollout.local_calls import LocalCallRunner
from tests.rollout.rollout_cases import ANSWER, IMAGE_SEARCH, code, question, search
from tools_service.client import Status, ToolResult

AGENT = AgentConfig(max_turns=5, max_images=6, system_prompt="per_tool")
PLAIN = replace(AGENT, tools=())


def answerer(server, agent=AGENT, tools=None, *, journal=None, tools_config=None, **sampling) -> EndpointAnswerer:
    endpoint = ChatEndpoint(server.url, "served-model", journal=journal, longest_wait_s=0.01, attempts=3)
    return EndpointAnswerer(
        endpoint, EndpointSampling(**sampling), agent, ImageConfig(), tools_config or ToolsConfig(), tools
    )


def ask(answerer, count=1, **fields):
    asked = [AnswerRequest(question(number), seed=number, **fields) for number in range(count)]
    answers = sorted(answerer.answers(asked), key=lambda answer: answer.request.id)
    assert [answer.request.id for answer in answers] == sorted(request.id for request in asked)
    return answers


def turn_number(body: dict) -> int:
    return sum(message["role"] == "assistant" for message in body["messages"])


def images_of(message: dict) -> list[bytes]:
    parts = message["content"] if isinstance(message["content"], list) else []
    return [base64.b64decode(p["image_url"]["url"].partition(",")[2]) for p in parts if p["type"] == "image_url"]


def test_without_tools_an_answer_is_one_request_with_the_bare_question(serve):
    server = serve(completion("<think>hm</think>Paris", prompt=30, generated=8))
    (answer,) = ask(answerer(server, PLAIN, max_tokens=77))
    (body,) = server.requests
    assert body["temperature"] == 0 and body["max_tokens"] == 77 and body["seed"] == 0 and "stop" not in body
    (message,) = body["messages"]
    assert message["content"][-1] == {"type": "text", "text": "What is it?"}
    assert images_of(message) == list(question(0).images)
    assert not answer.failure and answer.trajectory.finish is Finish.ANSWER
    assert (answer.prompt_tokens, answer.completion_tokens, answer.requests) == (30, 8, 1)
    assert answer.trajectory.turns[0].text == "<think>hm</think>Paris" and answer.trajectory.tools == ()
    assert final_answer(answer.text) == "Paris"


@pytest.mark.parametrize(
    ("reply", "final"),
    [("<think>a</think><answer>B</answer> bye", "B"), ("B", "B"), ("<code>1</code>", "<code>1</code>"), ("", None)],
)
def test_without_tools_the_answer_is_in_the_tags_or_the_reply_itself(serve, reply, final):
    (answer,) = ask(answerer(serve(completion(reply)), PLAIN))
    assert final_answer(answer.text) == final and answer.failure == ""


def test_several_turns_with_the_real_tools_service(serve, client):
    """Catches: a lost session, image or observation, and text after a closing tag that is sent back to the model."""

    def reply(body, number):
        turns = [
            code("x = 41\nimage_1.resize((50, 40))").removesuffix("</code>"),  # stopped: the tag is left out
            code("print(x + 1)") + "\nCode execution result: 13",  # not stopped: an invented result
            search("height of Mount Kea").removesuffix("</tool_call>"),
            IMAGE_SEARCH,
            "<think>x</think>\n<answer>42</answer>",
        ]
        return completion(turns[turn_number(body)], prompt=100, generated=10)

    server = serve(reply, delay_s=0.1)
    runner = LocalCallRunner(client)
    answers = ask(answerer(server, tools=runner, concurrency=3), count=5)
    assert len(server.requests) == 25 and 1 < server.most_open <= 3
    for answer in answers:
        assert answer.failure == "" and answer.trajectory.finish is Finish.ANSWER
        turns = answer.trajectory.turns
        assert [turn.kind for turn in turns] == ["code", "code", "search", "image_search", "answer"]
        assert {turn.status for turn in turns[:4]} == {Status.OK}
        (shown,) = turns[0].images
        assert Image.open(io.BytesIO(shown)).size == (50, 40)
        assert "42" in turns[1].observation and "4207" in turns[2].observation and len(turns[3].images) > 0
        assert (answer.requests, answer.prompt_tokens, answer.completion_tokens) == (5, 500, 50)
        assert final_answer(answer.text) == "42" and answer.seconds > 0
    last = max((body for body in server.requests), key=turn_number)
    assert last["stop"] == ["</code>", "</tool_call>"]
    assistant = [message["content"] for message in last["messages"] if message["role"] == "assistant"]
    assert [text.endswith(("</code>", "</tool_call>")) for text in assistant] == [True] * 4
    assert not any("invented" in text or "13" in text for text in assistant)
    assert [message["role"] for message in last["messages"][:2]] == ["system", "user"]
    assert images_of(last["messages"][3]) == [shown] or images_of(last["messages"][3])
    assert client.pending() == 0


def test_a_rejected_stop_string_is_cut_here(serve, client):
    refusal = error(400, "Unsupported parameter: 'stop' is not supported with this model.", param="stop")

    def reply(body, number):
        if "stop" in body:
            return refusal
        return (code("print(6 * 7)") + "\nI see 9.") if turn_number(body) == 0 else "<answer>42</answer>"

    server = serve(reply)
    (answer,) = ask(answerer(server, tools=LocalCallRunner(client)))
    assert answer.trajectory.turns[0].text.endswith("</code>") and "42" in answer.trajectory.turns[0].observation
    assert len(server.requests) == 3 and "I see 9" not in json.dumps(server.requests[-1])


def test_a_turn_without_an_action_is_answered_with_the_error(serve):
    server = serve(lambda body, number: ["I think so.", "<code>x</code>", ANSWER][turn_number(body)])
    (answer,) = ask(answerer(server, tools=RefusingTools()))
    assert "No action found" in answer.trajectory.turns[0].observation
    assert "No runnable code" in answer.trajectory.turns[1].observation
    assert answer.trajectory.finish is Finish.ANSWER and answer.requests == 3


def test_refused_tools_are_observed(serve):
    server = serve(lambda body, number: search("x") if turn_number(body) == 0 else ANSWER)
    (answer,) = ask(answerer(server, tools=RefusingTools()))
    assert "switched off" in answer.trajectory.turns[0].observation


def test_the_last_permitted_turn_ends_without_a_failure(serve):
    server = serve(lambda body, number: code(str(number)))
    (answer,) = ask(answerer(server, replace(AGENT, max_turns=2), RefusingTools()))
    assert answer.trajectory.finish is Finish.MAX_TURNS and answer.failure == "" and answer.requests == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Raw(500), "gave no reply in 3 attempts: 500"),
        (RESET, "gave no reply in 3 attempts: "),
        (Raw(200, b"not json"), "gave no reply in 3 attempts: JSONDecodeError"),
        (error(400, "maximum context length is 8192 tokens"), "refused the request: 400 maximum context length"),
        (completion("half", "length"), "finish_reason length"),
        (completion("", "content_filter"), "finish_reason content_filter"),
    ],
)
def test_a_failure_costs_one_answer_and_is_never_a_wrong_one(serve, bad, reason):
    """Catches: one bad question that ends the run, and half a reply that is scored."""

    def reply(body, number):
        return bad if "Bad" in json.dumps(body["messages"]) else "<answer>7</answer>"

    server = serve(reply)
    asked = [AnswerRequest(question(0)), AnswerRequest(replace(question(1, text="Bad one"), id="bad"))]
    answers = {answer.request.question.id: answer for answer in answerer(server, PLAIN).answers(asked)}
    assert answers["q0"].failure == "" and reason in answers["bad"].failure
    assert answers["bad"].trajectory.finish is Finish.LOST and answers["bad"].trajectory.dropped


def test_an_image_that_cannot_be_read_costs_one_answer(serve):
    broken = replace(question(1), images=(b"no image",), id="broken")
    answers = list(answerer(serve(ANSWER), PLAIN).answers([AnswerRequest(broken), AnswerRequest(question(0))]))
    failures = {answer.request.question.id: answer.failure for answer in answers}
    assert failures["q0"] == "" and "UnidentifiedImageError" in failures["broken"]


def test_an_outage_ends_the_run(serve):
    """Catches: every remaining question marked as failed, one after the other."""
    server = serve(Raw(401))
    with pytest.raises(EndpointOutage, match="API key is refused"):
        ask(answerer(server, PLAIN), count=3)


class LosingTools:
    """Loses the first `times` requests, as a service does that was restarted; then the answer to every code is 42."""

    def __init__(self, times):
        self.times, self.waiting, self.closed = times, [], []

    def submit(self, requests):
        self.waiting += requests

    def poll(self, timeout_s=0.0):
        waiting, self.waiting = self.waiting, []
        found = []
        for request in waiting:
            status = Status.SESSION_LOST if self.times > 0 else Status.OK
            self.times -= 1
            found.append(ToolResult(request.request_id, "code", status, "42"))
        return found

    def close_sessions(self, ids):
        self.closed += ids


def test_a_lost_session_starts_the_answer_again_without_paying_again(serve, tmp_path):
    server = serve(lambda body, number: code("40 + 2") if turn_number(body) == 0 else ANSWER)
    with closing(ReplyJournal(tmp_path / "replies.jsonl")) as journal:
        tools = LosingTools(2)
        (answer,) = ask(answerer(server, tools=tools, journal=journal))
        assert answer.failure == "" and len(server.requests) == 2 and len(tools.closed) == 3
        (answer,) = ask(answerer(server, tools=LosingTools(9), journal=journal, tools_config=ToolsConfig(retries=1)))
        assert answer.failure == "the tools service lost the trajectory" and answer.trajectory.dropped


def test_samples_are_separate_requests(serve, tmp_path):
    server = serve(lambda body, number: f"<answer>{number}</answer>")
    with closing(ReplyJournal(tmp_path / "replies.jsonl")) as journal:
        asked = [AnswerRequest(question(0), sample=sample) for sample in range(3)]
        answers = list(answerer(server, PLAIN, journal=journal, temperature=1.0).answers(asked))
    assert len({final_answer(answer.text) for answer in answers}) == len(server.requests) == 3


def test_a_further_attempt_sends_only_what_failed_again(serve, tmp_path, client):
    """Catches a failed reply that is read from storage at every attempt, and good turns that are paid for twice."""

    def reply(body, _):
        if turn_number(body) == 0:
            return completion(code("print(6 * 7)"))
        return completion("", finish="content_filter") if body["seed"] == 0 else completion(ANSWER)

    server, path = serve(reply), tmp_path / "replies.jsonl"
    for attempt, wanted in ((1, 2), (2, 3), (2, 3)):  # the last has all its replies stored
        with closing(ReplyJournal(path)) as journal:
            (answer,) = ask(answerer(server, tools=client, journal=journal, temperature=1.0), attempt=attempt)
        assert bool(answer.failure) == (attempt == 1)
        assert len(server.requests) == wanted
    for attempt in (1, 2):  # greedy replies would fail again
        with closing(ReplyJournal(path)) as journal:
            (answer,) = ask(answerer(server, tools=client, journal=journal), attempt=attempt)
        assert answer.failure and len(server.requests) == 5


def test_closing_abandons_what_is_open(serve):
    server = serve("<answer>7</answer>", delay_s=0.2)
    answers = answerer(server, PLAIN, concurrency=2).answers(AnswerRequest(question(n)) for n in range(50))
    next(answers)
    answers.close()
    time.sleep(0.5)
    assert len(server.requests) <= 4


PROGRAM = """
import json, sys
from contextlib import closing
from dv2_jax.config import AgentConfig, ImageConfig, ToolsConfig
from dv2_jax.endpoint import ChatEndpoint, ReplyJournal
from dv2_jax.evaluation.answerers.answerer import AnswerRequest
from dv2_jax.evaluation.answerers.endpoint_answerer import EndpointAnswerer, EndpointSampling
from tests.evaluation.answerers.test_endpoint_answerer import LosingTools
from tests.rollout.rollout_cases import question
url, journal = sys.argv[1:]
endpoint = ChatEndpoint(url, "m", journal=ReplyJournal(journal))
agent = AgentConfig(max_turns=5, system_prompt="per_tool")
answerer = EndpointAnswerer(
    endpoint, EndpointSampling(concurrency=4), agent, ImageConfig(), ToolsConfig(), LosingTools(0)
)
print("started", flush=True)
asked = (AnswerRequest(question(number % 7, text=f"Question {number}?")) for number in range(40))
found = sorted((answer.request.question.text, answer.text, answer.requests, answer.prompt_tokens)
               for answer in answerer.answers(asked))
print(json.dumps(found), flush=True)
"""


def test_kill_9_at_random_moments_repeats_no_request_whose_reply_arrived(serve, tmp_path):
    """Catches: a continued run that pays again, or whose answers differ from those of an uninterrupted one."""

    def reply(body, number):
        asked = body["messages"][1]["content"][-1]["text"].partition("?")[0]
        return code(f"'{asked}', {turn_number(body)}") if turn_number(body) < 3 else f"<answer>{asked}</answer>"

    server = serve(reply, delay_s=0.03)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    path = tmp_path / "replies.jsonl"

    def start(journal):
        command = [sys.executable, "-c", PROGRAM, server.url, str(journal)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)

    lines = [0]
    for kill in range(3):
        process = start(path)
        process.stdout.readline()
        target = lines[-1] + 30
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and (path.read_bytes().count(b"\n") if path.exists() else 0) < target:
            time.sleep(0.005 * (kill + 1))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        lines.append(path.read_bytes().count(b"\n"))
    process = start(path)
    output = process.communicate(timeout=300)[0].splitlines()
    interrupted, requests = output[1], len(server.requests)
    sent = Counter(json.dumps(body, sort_keys=True) for body in server.requests)
    assert len(sent) == 160 and lines[-1] < 160  # 40 questions with 4 turns each; the last kill was before the end
    # A request that was on its way when the process was killed has no stored reply: at most 4 per kill are sent again.
    assert requests <= 160 + 4 * 3 and max(sent.values()) <= 1 + 3
    process = start(tmp_path / "other.jsonl")
    assert process.communicate(timeout=300)[0].splitlines()[1] == interrupted
    process = start(path)
    before = len(server.requests)
    assert process.communicate(timeout=300)[0].splitlines()[1] == interrupted and len(server.requests) == before
