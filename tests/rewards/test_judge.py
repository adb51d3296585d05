"""The judge's client against a real HTTP server: what is asked, how verdicts are read, what outages do."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dv2_jax.rewards.judge import Judge, JudgeUnavailable, bare_expression, parse_consistency, parse_equivalence


class Endpoint:
    """An OpenAI-compatible endpoint that plays back (status, content) pairs; the last one repeats."""

    def __init__(self, *replies: tuple[int, str]):
        self.replies, self.requests = list(replies), []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                endpoint.requests.append(self.path)
                self.send(200, {"data": [{"id": "served-model"}]})

            def do_POST(self):
                endpoint.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                replies = endpoint.replies
                status, content = replies.pop(0) if len(replies) > 1 else replies[0]
                self.send(status, {"choices": [{"message": {"content": content}}]})

            def send(self, status, value):
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def serve():
    opened = []

    def start(*replies):
        opened.append(Endpoint(*replies))
        return opened[-1]

    yield start
    for endpoint in opened:
        endpoint.server.shutdown()
        endpoint.server.server_close()


def judge(endpoint, **fields) -> Judge:
    return Judge(endpoint.url, longest_wait_s=0.01, attempts=3, **fields)


def test_a_consistency_question_carries_all_three_texts_and_the_released_sampling(serve):
    endpoint = serve((200, r"<think>Yes?</think>\boxed{No}"), (200, r"\boxed{Yes}"))
    client = judge(endpoint)
    assert not client.consistent("Q {x}", "A", "P")
    assert client.consistent("Q", "A", "P")
    assert endpoint.requests[0] == "/v1/models"  # asked once, and only with the first question
    first, _ = endpoint.requests[1:]
    assert first["model"] == "served-model" and (first["temperature"], first["max_tokens"]) == (0.3, 8192)
    assert [m["role"] for m in first["messages"]] == ["system", "user"]
    assert first["messages"][1]["content"] == "[Question]: Q {x}\n[Reference answer]: A\n[Model's answer]: P"
    client.close()


def test_a_math_question_is_one_message_and_the_answer_is_unwrapped(serve):
    endpoint = serve((200, "## Equivalence Judgement\nTRUE"))
    client = judge(endpoint, model="mine")
    assert client.same_mathematics("Q", r"\frac{1}{2}", r"$x = \boxed{0.5}$")
    (request,) = endpoint.requests
    assert request["model"] == "mine" and request["temperature"] == 0.5 and "max_tokens" not in request
    assert request["messages"][0]["content"].endswith("Student's answer:\n0.5")
    client.close()


def test_passing_failures_are_retried(serve):
    endpoint = serve((503, ""), (200, ""), (200, r"\boxed{Yes}"))
    assert judge(endpoint, model="m").consistent("Q", "A", "P") and len(endpoint.requests) == 3


def test_an_outage_is_an_error_and_no_verdict(serve):
    endpoint = serve((500, ""))
    with pytest.raises(JudgeUnavailable, match="3 attempts"):
        judge(endpoint, model="m").consistent("Q", "A", "P")
    assert len(endpoint.requests) == 3
    with pytest.raises(JudgeUnavailable):
        Judge("http://127.0.0.1:1/v1", attempts=2, longest_wait_s=0.01).consistent("Q", "A", "P")


def test_a_refused_request_is_not_repeated(serve):
    endpoint = serve((401, ""))
    with pytest.raises(JudgeUnavailable, match="401"):
        judge(endpoint, model="m").consistent("Q", "A", "P")
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (r"<think>Yes, it may be.</think><最终结果>\boxed{No}<\最终结果>", False),
        (r"<最终结果>\boxed{No}<\最终结果> then <最终结果>\boxed{Yes}</最终结果> No", True),
        (r"\boxed{Yes} \boxed{No}", False),
        ("Yes", True),
        ("yes", False),  # case matters, as released
        ("", False),
    ],
)
def test_consistency_verdicts_are_read_as_released(response, verdict):
    assert parse_consistency(response) == verdict


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("## Equivalence Judgement\nTRUE", True),
        ("true or false? ## Equivalence Judgement\nFalse.", False),
        ("## Equivalence Judgement\nTRUE, not FALSE", None),
        ("I cannot say", None),
    ],
)
def test_equivalence_verdicts_are_read_as_released(response, verdict):
    assert parse_equivalence(response) is verdict


def test_an_answer_in_words_keeps_its_words():
    """The released normalization would make "thesquareofpoints" of it."""
    assert bare_expression("the square of points") == "the square of points"
    assert bare_expression(r"$A = \boxed{\frac{1}{2}}$") == r"\frac{1}{2}"
