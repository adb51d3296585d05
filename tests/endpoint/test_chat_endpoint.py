"""Tests of the client of chat endpoints against local HTTP servers."""

import base64
import email.utils
import io
import json
import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import PIL.Image
import pytest

from benchmarks.chat_server import RESET, Raw, completion, error
from dv2_jax.config import ConfigError, RunFailure
from dv2_jax.endpoint import (
    ChatEndpoint,
    EndpointNames,
    EndpointOutage,
    EndpointUnavailable,
    ReplyJournal,
    chat_content,
)
from dv2_jax.endpoint.adaptive_limit import AdaptiveLimit

ASK = [{"role": "user", "content": "Capital of France?"}]


def connect(server, **fields) -> ChatEndpoint:
    return ChatEndpoint(server.url, **{"model": "served-model", "longest_wait_s": 0.01, "attempts": 4} | fields)


def replies(*answers):
    """Returns a reply function that gives the answers in turn; the last one repeats."""
    return lambda body, number: answers[min(number, len(answers) - 1)]


def test_a_reply_has_text_usage_and_finish_reason(serve):
    server = serve(completion("Paris", prompt=21, generated=7))
    reply = connect(server).complete(ASK, temperature=0, seed=5, max_tokens=9, stop=["</code>"], top_p=None)
    assert (reply.text, reply.finish_reason, reply.model, reply.failure) == ("Paris", "stop", "served-model", "")
    assert (reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens) == (21, 7, 4)
    (sent,) = server.requests
    assert sent == {"model": "served-model", "messages": ASK, "temperature": 0, "seed": 5, "max_tokens": 9,
                    "stop": ["</code>"]}  # fmt: skip


@pytest.mark.parametrize("answer", [RESET, Raw(500), Raw(408), Raw(409), Raw(200, b"<html>"), Raw(200, b'{"choices": []}'),
                                    completion(""), completion(None), completion([{"type": "text"}])])  # fmt: skip
def test_what_may_help_is_sent_again(serve, answer):
    """Catches: a broken connection, a server error or an unreadable body that counts as a reply, or ends the run."""
    server = serve(replies(answer, answer, "Paris"))
    assert connect(server).complete(ASK).text == "Paris"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "0.4"}, 0.4),
        ({"retry-after-ms": "300", "retry-after": "9"}, 0.3),
        ({"retry-after": email.utils.formatdate(time.time() + 2, usegmt=True)}, None),
    ],
)
def test_retry_after_is_honored(serve, headers, seconds):
    """Catches: a back-off of its own in place of the time that the endpoint asks for, which ends in a ban."""
    if seconds is None:  # a date: made now, so that it is in the future however late the test runs
        headers, seconds = {"retry-after": email.utils.formatdate(time.time() + 2, usegmt=True)}, 0.8
    server = serve(replies(Raw(429, headers=headers), "Paris"))
    assert connect(server).complete(ASK).text == "Paris"
    assert seconds <= server.times[1] - server.times[0] < seconds + 8


def test_a_long_retry_after_ends_as_an_outage(serve):
    """Catches: a run that sleeps for an hour without a word."""
    server = serve(Raw(429, headers={"retry-after": "3600"}))
    started = time.monotonic()
    with pytest.raises(EndpointOutage, match="has given no reply for .*429"):
        connect(server, outage_s=0.3).complete(ASK)
    assert time.monotonic() - started < 20


def test_rate_limits_lower_the_concurrency_and_successes_raise_it(serve):
    """Catches: 16 clients that go on hammering an endpoint that takes 4."""
    state = {"open": 0}
    lock = threading.Lock()

    def reply(body, number):
        with lock:
            state["open"] += 1
            busy = state["open"] > 4
        time.sleep(0.02)
        with lock:
            state["open"] -= 1
        return Raw(429, headers={"retry-after-ms": "30"}) if busy else "Paris"

    server = serve(reply)
    client = connect(server, concurrency=16, attempts=1000)
    with ThreadPoolExecutor(16) as threads:
        texts = list(threads.map(lambda _: client.complete(ASK).text, range(120)))
    assert texts == ["Paris"] * 120
    assert server.most_open <= 16
    assert client.limit.limit < 16  # it has come down, and stays near what the endpoint takes
    assert len(server.requests) < 2 * 120


def test_the_limit_recovers():
    """Catches: a limit that stays at 1 after one overload, and one that falls to 1 because many requests report it."""
    limit = AdaptiveLimit(16)
    for _ in range(16):
        limit.overloaded(0)  # all of one round
    assert limit.limit == 8
    with limit.slot() as number:
        assert number == 1
    for _ in range(200):
        limit.succeeded()
    assert limit.limit == 16
    with pytest.raises(ValueError, match="at least 1"):
        AdaptiveLimit(0)


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_an_incomplete_reply_has_a_failure(serve, finish):
    """Catches: half an answer that counts as the answer."""
    reply = connect(serve(completion("Par", finish))).complete(ASK)
    assert reply.text == "Par" and finish in reply.failure


def test_an_incomplete_reply_without_text_is_not_repeated(serve):
    """Catches: eight paid attempts of a reasoning model that spends its limit on thoughts."""
    server = serve(completion("", "length"))
    assert connect(server).complete(ASK).failure and len(server.requests) == 1


def test_an_empty_reply_can_be_allowed(serve):
    server = serve(completion(""))
    assert connect(server).complete(ASK, allow_empty=True).text == "" and len(server.requests) == 1


def test_a_refusal_is_text(serve):
    body = completion(None)
    body["choices"][0]["message"]["refusal"] = "I cannot help with that."
    assert connect(serve(body)).complete(ASK).text == "I cannot help with that."


def test_thoughts_and_stop_reason_are_kept(serve):
    body = completion("<code>\nx", stop_reason="</code>")
    body["choices"][0]["message"]["reasoning_content"] = "hm"
    reply = connect(serve(body)).complete(ASK)
    assert (reply.reasoning, reply.stop_reason, reply.knows_stop_reason) == ("hm", "</code>", True)


@pytest.mark.parametrize(
    ("parameter", "answer"),
    [
        ("stop", error(400, "Unsupported parameter: 'stop' is not supported with this model.", param="stop")),
        ("seed", error(422, "Extra inputs are not permitted: seed")),
        ("temperature", error(400, "'temperature' does not support 0; only the default (1) value is supported.",
                              param="temperature", code="unsupported_value")),
    ],
)  # fmt: skip
def test_a_rejected_parameter_is_left_out_with_one_warning(serve, caplog, parameter, answer):
    """Catches: a model that cannot be measured because it takes no stop strings, and a silent change of the protocol."""
    server = serve(lambda body, number: answer if parameter in body else "Paris")
    client = connect(server)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            reply = client.complete(ASK, stop=["x"], seed=number, temperature=0)
            assert reply.text == "Paris" and reply.left_out == (parameter,)
    assert len(server.requests) == 4
    assert len([record for record in caplog.records if parameter in record.getMessage()]) == 1


def test_max_tokens_takes_its_newer_name_where_the_endpoint_wants_it(serve):
    answer = error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", param="max_tokens")
    server = serve(lambda body, number: answer if "max_tokens" in body else "Paris")
    reply = connect(server).complete(ASK, max_tokens=50)
    assert reply.left_out == () and server.requests[-1]["max_completion_tokens"] == 50


def test_another_refusal_is_not_repeated_and_quoted_shortly(serve):
    """Catches: an error that prints megabytes of image, or the key."""
    image = "data:image/png;base64," + "A" * 5000
    server = serve(error(400, f"bad image {image} for Bearer sk-abcdefghijkl, " + "x" * 5000))
    with pytest.raises(EndpointUnavailable, match="refused the request: 400 bad image data:…") as caught:
        connect(server).complete(ASK)
    assert len(server.requests) == 1 and len(str(caught.value)) < 400
    assert "AAAA" not in str(caught.value) and "abcdefgh" not in str(caught.value)


def test_the_key_is_read_from_the_environment_and_never_shown(serve, monkeypatch, caplog):
    monkeypatch.setenv("DV2_ENDPOINT_API_KEY", "secret-of-mine")
    server = serve("Paris")
    with caplog.at_level(logging.DEBUG):
        connect(server).complete(ASK)
    assert server.headers[0]["Authorization"] == "Bearer secret-of-mine"
    assert "secret-of-mine" not in caplog.text
    with pytest.raises(EndpointUnavailable) as caught:
        ChatEndpoint("http://me:hidden@127.0.0.1:1/v1", "m", attempts=1).complete(ASK)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Raw(401), "401, the API key is refused; set DV2_ENDPOINT_API_KEY"),
        (error(402, "no credit"), "no credit left"),
        (error(429, "You exceeded your quota", code="insufficient_quota"), "no credit left"),
    ],
)
def test_a_refused_key_ends_the_run_at_once(serve, answer, message):
    """Catches: a thousand failed answers, one after the other, because a key has expired."""
    server = serve(answer)
    with pytest.raises(EndpointOutage, match=message):
        connect(server).complete(ASK)
    assert len(server.requests) == 1


def test_no_reply_for_long_enough_is_an_outage(serve):
    client = connect(serve(Raw(500)), outage_s=0.5, attempts=1)
    started = time.monotonic()
    with pytest.raises(EndpointOutage, match=r"has given no reply for \d+ s; last error: 500"):
        while time.monotonic() - started < 60:
            with pytest.raises(EndpointUnavailable):
                client.complete(ASK)
    assert time.monotonic() - started >= 0.5 and issubclass(EndpointOutage, RunFailure)


def test_a_closed_client_ends_its_waits(serve):
    """Catches: Ctrl-C that takes minutes because threads sleep between attempts."""
    client = connect(serve(Raw(500)), longest_wait_s=60, attempts=100)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(client.complete, ASK) for _ in range(2)]
        time.sleep(0.3)
        client.close()
        for future in waiting:
            with pytest.raises(EndpointUnavailable):
                future.result(20)


def test_the_probe_names_the_fields_of_its_endpoint(serve):
    names = EndpointNames(model_key="eval.endpoint_model")
    with pytest.raises(ConfigError, match="eval.endpoint_model = 'huge' is not served at .*, which has served-model"):
        ChatEndpoint(serve("Yes").url, "huge", names=names).probe()
    with pytest.raises(ConfigError, match="eval.endpoint = http://127.0.0.1:1/v1: no connection"):
        ChatEndpoint("http://127.0.0.1:1/v1", names=names).probe()
    client = ChatEndpoint(serve("Yes").url)
    client.probe()
    assert client.model == "served-model"


def test_images_are_sent_as_data_urls_at_their_markers(serve):
    png, bmp = (encode(kind) for kind in ("PNG", "BMP"))
    parts = chat_content("First <image> then\n<image>", [png, bmp], "<image>")
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "image_url"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert base64.b64decode(urls[0].removeprefix("data:image/png;base64,")) == png
    converted = PIL.Image.open(io.BytesIO(base64.b64decode(urls[1].removeprefix("data:image/png;base64,"))))
    assert converted.format == "PNG" and converted.size == (3, 2)
    assert chat_content("plain", [], "<image>") == "plain"
    with pytest.raises(ValueError, match="0 <image> markers for 1 images"):
        chat_content("plain", [png], "<image>")
    server = serve("Paris")
    connect(server).complete([{"role": "user", "content": parts}])
    assert server.requests[0]["messages"][0]["content"] == parts


def open_journal(folder):
    return closing(ReplyJournal(folder / "replies.jsonl"))


def encode(kind: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (3, 2), "red").save(buffer, format=kind)
    return buffer.getvalue()


def test_lone_surrogates_are_encoded(serve):
    server = serve("Paris")
    connect(server).complete([{"role": "user", "content": "\ud83d"}])
    assert server.requests[0]["messages"][0]["content"] == "?"


def test_a_stored_reply_is_not_requested_again(serve, tmp_path):
    server = serve(lambda body, number: completion(f"reply {number}", generated=number))
    with open_journal(tmp_path) as journal:
        first = connect(server, journal=journal).complete(ASK, temperature=0)
        assert connect(server, journal=journal).complete(ASK, temperature=0) == first
    with open_journal(tmp_path) as journal:
        assert connect(server, journal=journal).complete(ASK, temperature=0) == first
        assert len(server.requests) == 1
        assert connect(server, journal=journal).complete(ASK, temperature=0, key="sample 1").text == "reply 1"
        assert connect(server, journal=journal).complete(ASK, temperature=1).text == "reply 2"
        assert connect(server, journal=journal, model="other").complete(ASK, temperature=0).text == "reply 3"


def test_equal_requests_at_the_same_time_are_sent_once(serve, tmp_path):
    server = serve(lambda body, number: f"reply {number}", delay_s=0.2)
    with open_journal(tmp_path) as journal:
        client = connect(server, journal=journal)
        with ThreadPoolExecutor(8) as threads:
            texts = {reply.text for reply in threads.map(lambda _: client.complete(ASK), range(8))}
    assert texts == {"reply 0"} and len(server.requests) == 1


def test_an_incomplete_line_of_the_journal_is_ignored(serve, tmp_path):
    """Catches: a process killed while it writes, after which nothing can be read, or two lines become one."""
    server = serve(lambda body, number: f"reply {number}")
    with open_journal(tmp_path) as journal:
        for number in range(3):
            connect(server, journal=journal).complete(ASK, seed=number)
    path = tmp_path / "replies.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with open_journal(tmp_path) as journal:
        assert len(journal) == 2
        client = connect(server, journal=journal)
        assert [client.complete(ASK, seed=number).text for number in range(3)] == ["reply 0", "reply 1", "reply 3"]
    with open_journal(tmp_path) as journal:
        assert len(journal) == 3
    assert all(json.loads(line)["digest"] for line in path.read_text().splitlines())


def test_two_processes_cannot_share_a_journal(tmp_path):
    with open_journal(tmp_path), pytest.raises(ConfigError, match="in use by another process"):
        ReplyJournal(tmp_path / "replies.jsonl")


def test_a_full_disk_is_one_sentence_and_loses_no_line(serve, tmp_path):
    """Catches: half a line at the end of the file, and a stack trace. RLIMIT_FSIZE stands for the full disk."""
    server = serve(lambda body, number: "x" * 400)
    program = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from dv2_jax.config import RunFailure
from dv2_jax.endpoint import ChatEndpoint, ReplyJournal
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
client = ChatEndpoint({server.url!r}, "m", journal=ReplyJournal({str(tmp_path / "replies.jsonl")!r}))
try:
    for number in range(10):
        client.complete([], seed=number)
except RunFailure as error:
    print(number, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "a reply cannot be stored (File too large)" in done.stdout, done.stderr
    lines = (tmp_path / "replies.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == int(done.stdout.split()[0]) > 0 and all(line.endswith(b"\n") for line in lines)
