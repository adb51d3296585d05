"""Tests of the judge's client against a local HTTP server: requests, verdicts, retries, the probe and outages."""

import time

import pytest

from dv2_jax.config import ConfigError, RunFailure
from dv2_jax.rewards.judge import (
    Judge,
    JudgeOutage,
    JudgeUnavailable,
    bare_expression,
    parse_consistency,
    parse_equivalence,
)
from tests.rewards.judge_endpoint import JudgeEndpoint

CLOSED = "http://127.0.0.1:1/v1"  # nothing listens there


@pytest.fixture
def serve():
    opened = []

    def start(*replies, **fields):
        opened.append(JudgeEndpoint(*replies, **fields))
        return opened[-1]

    yield start
    for endpoint in opened:
        endpoint.close()


def judge(endpoint, **fields) -> Judge:
    return Judge(endpoint.url, **{"longest_wait_s": 0.01, "attempts": 3} | fields)


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


def test_transient_failures_are_retried(serve):
    endpoint = serve((503, ""), (200, ""), (200, r"\boxed{Yes}"))
    assert judge(endpoint, model="m").consistent("Q", "A", "P") and len(endpoint.requests) == 3


def test_an_outage_is_an_error_and_no_verdict(serve):
    endpoint = serve((500, ""))
    with pytest.raises(JudgeUnavailable, match="3 attempts"):
        judge(endpoint, model="m").consistent("Q", "A", "P")
    assert len(endpoint.requests) == 3
    with pytest.raises(JudgeUnavailable):
        Judge(CLOSED, attempts=2, longest_wait_s=0.01).consistent("Q", "A", "P")


def test_a_refused_request_is_not_repeated(serve):
    endpoint = serve((401, ""))
    with pytest.raises(JudgeUnavailable, match="401"):
        judge(endpoint, model="m").consistent("Q", "A", "P")
    assert len(endpoint.requests) == 1


def test_what_a_policy_wrote_is_encoded(serve):
    """Catches: a lone surrogate that fails the request eight times."""
    endpoint = serve((200, r"\boxed{No}"))
    assert not judge(endpoint, model="m").consistent("Q", "A", "P \ud83d")
    assert endpoint.requests[0]["messages"][1]["content"].endswith("P ?")


def test_a_working_judge_passes_the_probe(serve):
    endpoint = serve((200, "Yes"))
    judge(endpoint).probe()
    judge(endpoint, model="served-model").probe()
    assert endpoint.requests[-1]["model"] == "served-model" and endpoint.requests[-1]["max_tokens"] <= 64
    unlisted = serve((200, "Yes"), models=404)  # a gateway without a list
    judge(unlisted, model="any").probe()
    judge(serve((503, ""), (200, "Yes"))).probe()  # still loading


@pytest.mark.parametrize(
    ("replies", "models", "model", "message"),
    [
        ((401, ""), ("served-model",), "", r"401, the API key is refused; set DV2_JUDGE_API_KEY"),
        ((200, "Yes"), 401, "", r"401, the API key is refused; set DV2_JUDGE_API_KEY"),
        ((404, ""), ("served-model",), "", r"404 for /v1/chat/completions"),
        ((200, "Yes"), 404, "", r"404 for /v1/models; the address ends with /v1"),
        (
            (200, "Yes"),
            ("big", "small"),
            "huge",
            r"reward.judge_model = 'huge' is not served at .*, which has big, small",
        ),
        ((200, "Yes"), (), "", r"no model is served there"),
        ((200, ""), ("m",), "m", r"does not answer like an OpenAI-compatible API"),
        ((400, "no"), ("m",), "m", r"400 from /v1/chat/completions"),
        ((500, ""), ("m",), "m", r"500 from /v1/chat/completions"),
    ],
)
def test_the_probe_fails_with_one_sentence(serve, replies, models, model, message):
    """Catches: a wrong address, key or model that shows only after the first rollouts, as dropped trajectories."""
    endpoint = serve(replies, models=models if isinstance(models, int) else list(models))
    with pytest.raises(ConfigError, match=message) as error:
        judge(endpoint, model=model).probe()
    assert "\n" not in str(error.value) and endpoint.url in str(error.value)


@pytest.mark.parametrize("url", [CLOSED, "http://no-such-host.invalid/v1", "not a url", "ftp://127.0.0.1/v1"])
def test_the_probe_names_an_address_without_a_server(url):
    started = time.monotonic()
    with pytest.raises(ConfigError, match="reward.judge_base_url = .*no connection"):
        Judge(url, attempts=3, longest_wait_s=0.01).probe()
    assert time.monotonic() - started < 30


def test_no_verdict_for_long_enough_is_an_outage(serve):
    """Catches: an outage tolerated without end, every question dropped."""
    endpoint = serve((500, ""))
    client = judge(endpoint, model="m", outage_s=0.5)
    started = time.monotonic()
    with pytest.raises(
        JudgeOutage, match=r"given no verdict for \d+ s .reward.judge_outage_s = 0.5.; last error: .*500"
    ):
        for _ in range(100_000):
            try:
                client.consistent("Q", "A", "P")
            except JudgeUnavailable:
                assert time.monotonic() - started < 60
    assert time.monotonic() - started >= 0.5
    assert issubclass(JudgeOutage, RunFailure) and not issubclass(JudgeOutage, JudgeUnavailable)


def test_one_verdict_ends_the_count(serve):
    """Catches: failures added up over a run, and pauses without questions counted as an outage."""
    endpoint = serve((500, ""))
    client = judge(endpoint, model="m", outage_s=0.4, attempts=1)
    with pytest.raises(JudgeUnavailable):
        client.consistent("Q", "A", "P")
    endpoint.replies[:] = [(200, r"\boxed{Yes}")]
    assert client.consistent("Q", "A", "P")
    time.sleep(0.5)
    endpoint.replies[:] = [(500, "")]
    with pytest.raises(JudgeUnavailable):
        client.consistent("Q", "A", "P")
    time.sleep(0.5)
    with pytest.raises(JudgeOutage):
        client.consistent("Q", "A", "P")


def test_retries_end_with_the_outage(serve):
    """Catches: eight slow attempts of one question that delay the end of a run by many minutes."""
    client = judge(serve((500, "")), model="m", outage_s=0.5, attempts=1_000_000)
    started = time.monotonic()
    with pytest.raises(JudgeOutage):
        client.consistent("Q", "A", "P")
    assert 0.5 <= time.monotonic() - started < 30


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
