"""Parsing of chat requests: every field, and one clear error for each value that cannot be honored."""

import base64
import io
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from dv2_jax.serving.api_error import ApiError
from dv2_jax.serving.chat_request import ChatRequest, parse_chat_request, parse_json

NAMES = {"agent": "dv2", "raw": "dv2-raw", "max_choices": 4, "greedy_by_default": True}
ASK = [{"role": "user", "content": "How many?"}]


def image_bytes(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 60), "red").save(buffer, kind)
    return buffer.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def parse(**fields) -> ChatRequest:
    return parse_chat_request({"model": "dv2", "messages": ASK} | fields, **NAMES)


def error_of(**fields) -> ApiError:
    with pytest.raises(ApiError) as raised:
        parse(**fields)
    return raised.value


def test_the_defaults_of_a_request():
    request = parse()
    assert request == ChatRequest("dv2", request.messages)
    assert [(message.role, message.parts) for message in request.messages] == [("user", ("How many?",))]


def test_every_supported_field_is_read():
    request = parse(
        model="dv2-raw", max_tokens=7, max_completion_tokens=5, temperature=0.5, top_p=1.0, n=3, seed=-4, stop="x",
        stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=0, return_token_ids=True,
        include_stop_str_in_output=True, user="me", tools=[], tool_choice="none", response_format={"type": "text"},
        presence_penalty=0, frequency_penalty=0.0, logit_bias={}, store=False, service_tier="auto",
    )  # fmt: skip
    assert request == ChatRequest(
        "dv2-raw", request.messages, max_tokens=5, temperature=0.5, n=3, seed=-4, stop=("x",), stream=True,
        include_usage=True, logprobs=True, return_token_ids=True, include_stop_text=True,
    )  # fmt: skip
    assert parse(max_tokens=7).max_tokens == 7


def test_null_is_absent():
    fields = (
        "max_tokens",
        "temperature",
        "n",
        "seed",
        "stop",
        "stream",
        "logprobs",
        "tools",
        "stream_options",
        "top_p",
    )
    assert parse(**dict.fromkeys(fields)) == parse()


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"n": 5}, "n", "between 1 and 4"),
        ({"n": True}, "n", "not an integer"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "not an integer"),
        ({"temperature": 2.5}, "temperature", "between 0 and 2"),
        ({"temperature": float("nan")}, "temperature", "between 0 and 2"),
        ({"temperature": "0"}, "temperature", "number"),
        ({"temperature": 1, "top_p": 0.9}, "top_p", "only temperature"),
        ({"temperature": 1, "top_k": 5}, "top_k", "only temperature"),
        ({"presence_penalty": 0.1}, "presence_penalty", "only temperature"),
        ({"frequency_penalty": -1}, "frequency_penalty", "only temperature"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "has its own tools"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"functions": [{}]}, "functions", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "replies are text"),
        ({"modalities": ["text", "audio"]}, "modalities", "text"),
        ({"model": "dv2-raw", "logprobs": True, "top_logprobs": 2}, "top_logprobs", "sampled tokens"),
        ({"logprobs": True}, "logprobs", "dv2-raw"),
        ({"continue_final_message": True}, "continue_final_message", "agent"),
        ({"stop": ["a", ""]}, "stop", "not empty"),
        ({"stop": [f"s{i}" for i in range(17)]}, "stop", "at most 16"),
        ({"seed": 1.0}, "seed", "integer"),
        ({"stream": "true"}, "stream", "bool"),
        ({"stream_options": []}, "stream_options", "dict"),
        ({"messages": None}, "messages", "at least one"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": ["hello"]}, "messages[0]", "role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "no string"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "no list of parts"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "robot"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0]", "user message"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages", "user"),
        ({"messages": [*ASK, {"role": "assistant", "content": "a"}]}, "messages", "last message"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages[0].content[0]", "video_url"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]", "no text"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_honored_is_an_error(fields, param, said):
    """Catches a sampling option that is ignored silently, so that results are those of another distribution."""
    error = error_of(**fields)
    assert (error.status, error.param) == (400, param)
    assert said in error.message and error.body()["error"]["param"] == param


def test_sampling_options_have_no_effect_on_greedy_decoding_and_are_accepted():
    assert parse(temperature=0, top_p=0.01, top_k=5) == parse(temperature=0)
    assert parse(top_p=0.5) == parse()  # greedy by default


def test_an_unknown_model_is_not_found():
    error = error_of(model="gpt-4")
    assert (error.status, error.code) == (404, "model_not_found") and "'dv2-raw'" in error.message
    assert error_of(model=None).status == 400


def test_turns_of_a_raw_dialogue_alternate():
    turns = [*ASK, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    assert len(parse(model="dv2-raw", messages=turns).messages) == 3
    assert "alternate" in error_of(model="dv2-raw", messages=[*turns, {"role": "user", "content": "c"}]).message
    continued = [*turns, {"role": "assistant", "content": "<think>"}]
    assert parse(model="dv2-raw", messages=continued, continue_final_message=True).continue_last


@pytest.mark.parametrize(("kind", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpg"), ("WEBP", "image/webp")])
def test_images_are_decoded_from_both_forms_of_a_part(kind, media_type):
    data = image_bytes(kind)
    url = data_url(data, media_type)
    content = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "image_url", "image_url": url},
        {"type": "text", "text": "Same?"},
    ]
    (message,) = parse(messages=[{"role": "user", "content": content}]).messages
    assert message.parts == (data, data, "Same?") and message.images == [data, data]


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("http://127.0.0.1/x.png", "unsupported_image_url", "fetches no URLs"),
        ("file:///etc/passwd", "unsupported_image_url", "fetches no URLs"),
        ("data:image/png,abc", "invalid_image", "no base64"),
        ("data:image/svg+xml;base64,AAAA", "invalid_image", "PNG, JPEG or WebP"),
        ("data:image/png;base64,%%%", "invalid_image", "not valid base64"),
        ("data:image/png;base64,AAAA", "invalid_image", "3 bytes"),
        ("data:text/html;base64," + base64.b64encode(image_bytes()).decode(), "invalid_image", "text/html"),
    ],
)
def test_an_image_that_cannot_be_read_is_an_error(url, code, said):
    """Catches a server that fetches URLs of its clients, and thereby of the inner network."""
    error = error_of(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": url}]}])
    assert (error.status, error.code, error.param) == (400, code, "messages[0].content[0].image_url")
    assert said in error.message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'"x"', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_an_error(body):
    with pytest.raises(ApiError) as raised:
        parse_json(body)
    assert (raised.value.status, raised.value.code) == (400, "invalid_json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["model", "messages", "n", "stop", "stream_options", "modalities", "temperature", "response_format", "top_p"]


@example({"modalities": [[]]}, None)  # a list is no element of a set
@given(st.dictionaries(st.sampled_from(FIELDS), JSON), JSON)
def test_any_json_is_a_request_or_an_api_error(fields, message):
    """Catches a field of an unexpected type that raises TypeError: status 500 instead of 400."""
    for candidate in ({"model": "dv2", "messages": ASK} | fields, {"model": "dv2", "messages": [message]}):
        try:
            parse_chat_request(candidate, **NAMES)
        except ApiError as error:
            json.dumps(error.body())
