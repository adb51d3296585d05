"""Tests the grammar of a turn: precedence, the block that counts, and every malformed call."""

import pytest

from dv2_jax.agent.parser import parse_turn


def code(body: str) -> str:
    return f"<code>\n```python\n{body}\n```\n</code>"


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


SEARCH = '{"name": "search", "arguments": {"query": "height of K2"}}'


def test_an_answer_ends_the_turn_even_with_code_and_a_search():
    turn = parse_turn(f"<think>x</think>{code('print(1)')}{call(SEARCH)}<answer> 8611 m\n</answer>")
    assert (turn.kind, turn.payload) == ("answer", "8611 m")


def test_an_empty_answer_is_no_answer():
    assert parse_turn(f"<answer> \n</answer>{code('x')}").kind == "code"
    assert parse_turn("<answer></answer><answer>b</answer>").payload == "b"
    assert parse_turn("<answer></answer>").kind == "none"


def test_code_goes_before_a_search():
    assert parse_turn(call(SEARCH) + code("y = 1")).payload == "y = 1"


def test_the_last_block_and_in_it_the_last_fence_count():
    text = code("a = 1") + "<code>\n```python\nb = 1\n```\nor\n```python  \nc = 1\n\n    d = 2\n```\n</code>"
    assert parse_turn(text).payload == "c = 1\n\n    d = 2"


def test_code_is_taken_as_written():
    body = "def f():\n\n    return '''\n  x'''\n\nfor i in range(2):\n    f()\nprint('</cod')"
    assert parse_turn(code(body)).payload == body


@pytest.mark.parametrize(
    "text",
    [
        "<code>print(1)</code>",
        "<code>\n```\nprint(1)\n```\n</code>",
        "<code>\n```python\nprint(1)\n```",
        "<code>\n```python\n  \n```\n</code>",
        code("a = 1") + "<code>nothing</code>",
    ],
)
def test_code_without_a_runnable_fence_is_malformed_not_the_end(text):
    turn = parse_turn(text)
    assert turn.kind == "malformed" and turn.error.startswith("Error: No runnable code") and not turn.calls_tool


def test_both_search_forms_are_read_and_the_last_call_counts():
    turn = parse_turn(call('{"name": "image_search"}') + call(SEARCH))
    assert (turn.kind, turn.payload) == ("search", "height of K2")
    assert parse_turn(call('{"name": "image_search"}')).kind == "image_search"
    assert parse_turn(call('{"name": "image_search", "arguments": null}')).kind == "image_search"


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        ("{'name': 'search'}", "Error: Invalid tool call format: {raw}. Error: Expecting property name enclosed in double "
         "quotes: line 1 column 2 (char 1)"),
        ("[1]", "Error: Invalid tool call format: {raw}. Error: not a JSON object"),
        ('{"name": "python"}', "Error: Invalid tool call name: {raw}."),
        ('{"arguments": {"query": "x"}}', "Error: Invalid tool call name: {raw}."),
        ('{"name": ["search"]}', "Error: Invalid tool call name: {raw}."),
        ('{"name": "image_search", "arguments": {}}', "Error: Invalid tool call parameters for image search: {raw}."),
        ('{"name": "search", "arguments": {"q": "x"}}', "Error: 'query'"),
        ('{"name": "search"}', "Error: 'query'"),
        ('{"name": "search", "arguments": {"query": ["x"]}}', "Error: 'query' must be a string that is not empty"),
        ('{"name": "search", "arguments": {"query": " "}}', "Error: 'query' must be a string that is not empty"),
    ],
)  # fmt: skip
def test_a_wrong_call_says_what_is_wrong(raw, error):
    turn = parse_turn(call(raw))
    assert (turn.kind, turn.error) == ("malformed", error.replace("{raw}", raw))


def test_deeply_nested_json_is_an_error_for_the_policy_not_a_crash():
    assert parse_turn(call("[" * 100_000)).kind == "malformed"


def test_an_unclosed_call_is_malformed_and_a_turn_without_action_is_none():
    turn = parse_turn(f"<tool_call>\n{SEARCH}")
    assert turn.kind == "malformed" and turn.error.endswith("Error: </tool_call> is missing")
    assert parse_turn("<think>hm</think> I am done.").kind == "none"
