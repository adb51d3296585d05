"""The server with the real engine and tools, over HTTP, against rollouts on the same engine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from dv2_jax.config import load
from dv2_jax.policy import load_policy
from dv2_jax.rollout.scheduler import RolloutRequest
from dv2_jax.rollout.session import open_session
from dv2_jax.serving.chat_response import answer_text
from dv2_jax.serving.chat_service import ChatService
from dv2_jax.serving.engine_thread import EngineThread
from dv2_jax.serving.http_app import build_app
from dv2_jax.serving.request_metrics import RequestMetrics
from dv2_jax.serving.served_policy import ServedPolicy
from dv2_jax.toy.tasks import make_questions
from tests.serving.test_chat_request import data_url, image_bytes

SMALL = [
    "--config.engine.slots=4",
    "--config.engine.page_size=512",  # one page per sequence: few widths, few programs to compile
    "--config.engine.pages=12",
    "--config.engine.prefill_rows=4",
    "--config.mesh.cpu_devices=1",
    "--config.agent.max_total_tokens=512",
    "--config.serve.max_queue=28",
    "--config.serve.keep_alive_s=0.2",
    "--config.serve.max_body_mb=1",
]
HELLO = [{"role": "user", "content": "hello"}]
TIMEOUT_S = 300
SURROGATE = json.dumps({"model": "dv2", "messages": [{"role": "user", "content": "\ud800"}]}).encode()


def ask(question) -> list[dict]:
    images = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in question.images]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question.text}]}]


class Server:
    """A server in threads of this process, with the questions and trajectories of rollouts before it started."""

    def __init__(self, session, questions, trajectories):
        self.session, self.questions, self.trajectories = session, questions, trajectories
        self.config = session.config.serve
        engine = EngineThread(session.scheduler())
        self.service = ChatService(ServedPolicy(session), engine, RequestMetrics())
        engine.start()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        app = build_app(self.service, self.config, "")
        self.uvicorn = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", http="h11", ws="none"))
        self.thread = threading.Thread(target=lambda: asyncio.run(self.uvicorn.serve(sockets=[self.listener])))
        self.thread.start()

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join()
        self.service.close()

    def wait_until_idle(self) -> None:
        """Waits until the engine holds no sequence; a leak runs into the timeout."""
        deadline = time.monotonic() + TIMEOUT_S
        while (self.session.engine._sequences or self.service.in_progress) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not self.session.engine._sequences and not self.service.in_progress


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    config = load(SMALL, command="serve", default_config="configs/serve.py")
    policy = load_policy(config, single_device=True)
    with open_session(policy, config, tmp_path_factory.mktemp("serve")) as session:
        session.load_params(warmup=False)
        made = make_questions("eval", 60, 0)
        questions = [question for question in (made[index] for index in range(60)) if question.images][:4]
        questions += [next(q for q in (made[index] for index in range(60)) if not q.images)]
        requests = [RolloutRequest(question, f"q{index}", index) for index, question in enumerate(questions)]
        server = Server(session, questions, session.scheduler(temperature=0.0).run(requests))
        yield server
        server.stop()


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
        yield client
    server.wait_until_idle()


def chat(client, messages=HELLO, model="dv2", **fields):
    return client.post("/v1/chat/completions", json={"model": model, "messages": messages} | fields)


def events(client, **fields) -> tuple[list[dict], list[str]]:
    """Returns the chunks of a stream, and all its lines."""
    body = {"model": "dv2", "messages": HELLO, "stream": True} | fields
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")], lines


def test_the_agent_answers_as_a_rollout_does(server, client):
    """Catches a prompt, budget or answer that differs from that of an evaluation of the same question."""
    for question, trajectory in zip(server.questions, server.trajectories, strict=True):
        body = chat(client, ask(question), temperature=0, max_tokens=32768, n=1, return_token_ids=True).json()
        (choice,) = body["choices"]
        assert body["prompt_token_ids"] + choice["token_ids"] == trajectory.token_ids
        assert choice["token_logprobs"] == pytest.approx(trajectory.logprobs[trajectory.prompt_tokens :], abs=1e-4)
        assert choice["loss_mask"] == trajectory.loss_mask[trajectory.prompt_tokens :]
        assert choice["message"]["content"] == answer_text(trajectory, server.session.tokenizer)
        assert choice["dv2"]["turns"] == len(trajectory.turns)
        assert choice["dv2"]["tool_calls"] == trajectory.tool_calls
        assert all(turn.text.strip() in choice["message"]["reasoning_content"] for turn in trajectory.turns)
        assert choice["finish_reason"] == ("stop" if choice["dv2"]["finish"] == "answer" else "length")
        usage = body["usage"]
        assert usage["prompt_tokens"] == trajectory.prompt_tokens
        assert usage["completion_tokens"] == trajectory.sampled_tokens
        assert usage["completion_tokens_details"]["reasoning_tokens"] <= usage["completion_tokens"]


def test_a_stream_has_the_turns_and_then_the_answer(server, client):
    question, trajectory = server.questions[0], server.trajectories[0]
    chunks, _ = events(client, messages=ask(question), stream_options={"include_usage": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [turn.text.strip() in d.get("reasoning_content", "") for turn, d in zip(trajectory.turns, deltas[1:])]
    content = "".join(delta.get("content", "") for delta in deltas)
    assert content == answer_text(trajectory, server.session.tokenizer)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == trajectory.sampled_tokens
    assert chunks[-2]["choices"][0]["finish_reason"] and chunks[-2]["choices"][0]["dv2"]["turns"]


def slow_down(server, monkeypatch, seconds: float) -> None:
    """Makes each step of the engine take at least this long."""
    step = server.session.engine.step
    monkeypatch.setattr(server.session.engine, "step", lambda: (time.sleep(seconds), step())[1])


def test_a_stream_without_data_has_comments(server, client, monkeypatch):
    """Catches a connection that a proxy closes because a tool runs for minutes."""
    slow_down(server, monkeypatch, 3 * server.config.keep_alive_s)
    _, lines = events(client, max_tokens=8)
    assert ": keep-alive" in lines and lines[0].startswith("data: ")


def test_the_agent_replies_to_hello_with_text(client):
    """Catches an empty reply, which VLMEvalKit counts as a failed endpoint."""
    for fields in ({}, {"max_tokens": 1}, {"messages": [{"role": "user", "content": ""}]}):
        body = chat(client, **fields).json()
        assert body["choices"][0]["message"]["content"].strip()
    assert chat(client, max_tokens=1).json()["choices"][0]["finish_reason"] == "length"


def test_raw_log_probs_are_those_of_the_sampler(server, client):
    """Catches log-probs at another temperature, and text that differs from the token ids."""
    fields = {"temperature": 0.7, "seed": 3, "n": 2, "logprobs": True, "return_token_ids": True, "max_tokens": 40}
    body = chat(client, model="dv2-raw", **fields).json()
    tokenizer = server.session.tokenizer
    for index, choice in enumerate(body["choices"]):
        ids = choice["token_ids"]
        visible = [id_ for id_ in ids if id_ not in tokenizer.control_ids]
        assert choice["index"] == index and choice["message"]["content"] == tokenizer.decode(visible)
        listed = choice["logprobs"]["content"]
        assert [bytes(entry["bytes"]) for entry in listed] == [tokenizer.token_bytes(id_) for id_ in ids]
        assert all(entry["logprob"] <= 0 for entry in listed)
    again = chat(client, model="dv2-raw", **fields).json()
    assert [choice["token_ids"] for choice in again["choices"]] == [c["token_ids"] for c in body["choices"]]
    other = chat(client, model="dv2-raw", **fields | {"seed": 4}).json()
    assert [choice["token_ids"] for choice in other["choices"]] != [c["token_ids"] for c in body["choices"]]
    chunks, _ = events(client, model="dv2-raw", **fields)
    for index, choice in enumerate(body["choices"]):
        own = [c["choices"][0] for c in chunks if c["choices"] and c["choices"][0]["index"] == index]
        assert "".join(part["delta"].get("content", "") for part in own) == choice["message"]["content"]
        streamed = [entry for part in own if part["logprobs"] for entry in part["logprobs"]["content"]]
        assert streamed == choice["logprobs"]["content"]


def test_a_raw_turn_stops_before_a_stop_string(client):
    full = chat(client, model="dv2-raw", temperature=0, return_token_ids=True).json()["choices"][0]
    text = full["message"]["content"]
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    for stream in (False, True):
        if stream:
            chunks, _ = events(client, model="dv2-raw", temperature=0, stop=[stop])
            content = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
            last = chunks[-1]["choices"][0]
        else:
            last = chat(client, model="dv2-raw", temperature=0, stop=stop, return_token_ids=True).json()["choices"][0]
            content = last["message"]["content"]
            assert last["token_ids"] == full["token_ids"][: len(last["token_ids"])] and len(last["token_ids"]) > 0
        assert content == text[: text.index(stop)]
        assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)


def test_a_client_that_runs_the_tools_gets_the_turns_of_the_agent(server, client):
    """Catches a raw dialogue whose next turn differs from the one that the agent takes after the same observation."""
    found = [(q, t) for q, t in zip(server.questions, server.trajectories, strict=True) if t.turns[0].observation]
    if not found:
        pytest.skip("no trajectory of the sample calls a tool")
    question, trajectory = found[0]
    from dv2_jax.agent.prompts import build_messages

    encoder = server.session.prompt_encoder
    system = build_messages(question, encoder.agent_config.system_prompt, encoder.tools)[0]["content"]
    first = trajectory.turns[0]
    shown = [{"type": "image_url", "image_url": data_url(image)} for image in first.images]
    messages = [{"role": "system", "content": system}, *ask(question)]
    reply = chat(client, messages, "dv2-raw", temperature=0).json()["choices"][0]["message"]["content"]
    assert reply == first.text
    messages += [
        {"role": "assistant", "content": reply},
        {"role": "user", "content": [*shown, {"type": "text", "text": first.observation}]},
        {"role": "assistant", "content": "<think>"},
    ]
    body = chat(client, messages, "dv2-raw", temperature=0, continue_final_message=True).json()
    assert body["choices"][0]["message"]["content"] == trajectory.turns[1].text


def test_concurrent_requests_share_the_engine_and_change_no_answer(server):
    async def all_at_once() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S) as client:
            bodies = [{"model": "dv2", "messages": ask(question)} for question in server.questions * 3]
            replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))
            return [reply.json()["choices"][0]["message"]["content"] for reply in replies]

    expected = [answer_text(trajectory, server.session.tokenizer) for trajectory in server.trajectories]
    assert asyncio.run(all_at_once()) == expected * 3
    server.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_sequences(server, monkeypatch, stream):
    """Catches a sequence that goes on, and keeps its slot, after its client has gone."""
    slow_down(server, monkeypatch, 0.5)
    body = {"model": "dv2-raw", "messages": HELLO, "temperature": 2.0, "n": 4, "stream": stream, "max_tokens": 400}
    before = left_clients(server)
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client, pytest.raises(httpx.TimeoutException):
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                next(response.iter_raw())
                raise httpx.ReadTimeout("the client leaves")
        client.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(TIMEOUT_S, read=0.3))
    server.wait_until_idle()
    assert left_clients(server) == before + 1


def left_clients(server) -> float:
    labels = {"model": "dv2-raw", "status": "499"}
    return server.service.metrics.registry.get_sample_value("dv2_serve_requests_total", labels) or 0.0


def test_a_full_queue_is_429_with_retry_after(server, client):
    places = server.service.policy.capacity
    filler = server.service.check_admission
    assert filler(places) is None
    held = [object() for _ in range(2)]
    for token in held:
        server.service._open[token] = places // 2
    try:
        response = chat(client)
    finally:
        for token in held:
            del server.service._open[token]
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert chat(client).status_code == 200


def test_a_draining_server_is_503_and_unhealthy(server, client):
    assert client.get("/healthz").json() == {"status": "ok"}
    server.service.is_draining = True
    try:
        response, health = chat(client), client.get("/healthz")
    finally:
        server.service.is_draining = False
    assert response.status_code == 503 and response.headers["retry-after"] == "5"
    assert response.json()["error"]["code"] == "draining"
    assert (health.status_code, health.json()) == (503, {"status": "draining"})


def test_models_and_metrics(client):
    listed = client.get("/v1/models").json()
    assert [(entry["id"], entry["object"]) for entry in listed["data"]] == [("dv2", "model"), ("dv2-raw", "model")]
    assert client.get("/v1/models/dv2-raw").json()["id"] == "dv2-raw"
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    chat(client, max_tokens=1)
    text = client.get("/metrics").text
    assert 'dv2_serve_requests_total{model="dv2",status="200"}' in text
    assert "dv2_serve_capacity 32.0" in text and "dv2_serve_answers_in_progress 0.0" in text


@pytest.mark.parametrize(
    ("send", "status", "code"),
    [
        (lambda c: c.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}), 400, "invalid_json"),
        (lambda c: c.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"}), 415, None),
        (lambda c: chat(c, model="other"), 404, "model_not_found"),
        (lambda c: chat(c, [{"role": "user", "content": "word " * 800}]), 400, "context_length_exceeded"),
        (lambda c: chat(c, [{"role": "user", "content": "word " * 800}], stream=True), 400, "context_length_exceeded"),
        (lambda c: chat(c, [{"role": "user", "content": "x" * 1_100_000}]), 413, "request_too_large"),
        (lambda c: chat(c, image_message(image_bytes()[:60])), 400, "invalid_image"),
        (lambda c: chat(c, image_message(*[image_bytes()] * 13)), 400, "too_many_images"),
        (lambda c: c.post("/v1/chat/completions", content=SURROGATE, headers={"content-type": "application/json"}), 400, None),
        (lambda c: c.get("/v1/completions"), 404, "unknown_url"),
        (lambda c: c.get("/v1/chat/completions"), 405, "unknown_url"),
        (lambda c: c.get("/v1/models", headers={"host": "evil.example"}), 421, None),
    ],
)  # fmt: skip
def test_errors_have_the_body_of_the_api(client, send, status, code):
    """Catches an error page as HTML or plain text, which clients cannot read."""
    response = send(client)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == code and error["message"]
    assert "0x" not in error["message"]


def image_message(*images: bytes) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": data_url(image)} for image in images]}]


def test_a_failed_step_is_an_error_of_its_requests_and_the_next_one_is_answered(server, client, monkeypatch):
    """Catches a thread that dies with an exception, so that every later request waits forever."""
    step = server.session.engine.step
    failures = iter([RuntimeError("the device is lost")])

    def failing_step():
        for error in failures:
            raise error
        return step()

    monkeypatch.setattr(server.session.engine, "step", failing_step)
    response = chat(client)
    assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
    assert "device" not in response.json()["error"]["message"]
    assert chat(client).status_code == 200


def test_a_token_is_required_where_there_is_one(server):
    app = build_app(server.service, dataclasses.replace(server.config, host="0.0.0.0"), "secret")

    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://any.host") as client:
            paths = [("/v1/models", {}), ("/v1/models", {"authorization": "Bearer wrong"}), ("/metrics", {}),
                     ("/v1/models", {"authorization": "Bearer secret"}), ("/healthz", {})]  # fmt: skip
            return [(await client.get(path, headers=headers)).status_code for path, headers in paths]

    assert asyncio.run(statuses()) == [401, 401, 401, 200, 200]
