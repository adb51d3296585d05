"""Tests of trajectories as chat messages: turns as endpoints return them, and the same observations as with token ids."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.agent.text_trajectory import TextTrajectory, complete_turn, prompt_messages, turns_text
from dv2_jax.agent.tools.tool_registry import default_tools, stop_strings
from dv2_jax.agent.trajectory import Finish
from dv2_jax.agent.trajectory_builder import TrajectoryBuilder
from dv2_jax.config import AgentConfig, ImageConfig
from dv2_jax.data.tokenizer import Tokenizer
from tests.rollout.rollout_cases import ANSWER, IMAGE_SEARCH, code, make_image, question, search
from tools_service.client import Status, ToolResult

CONFIG = AgentConfig(max_turns=4, max_turn_tokens=400, max_total_tokens=6000, max_images=3)
CALL = code("1")


@pytest.mark.parametrize(
    ("text", "stopped_at", "expected"),
    [
        (CALL.removesuffix("</code>"), "", CALL),  # the tag is left out, as the API says
        (CALL.removesuffix("</code>"), "</code>", CALL),
        (CALL.removesuffix("</code>"), None, CALL.removesuffix("</code>")),  # the model ended the turn itself
        (CALL.removesuffix("</code>"), "</s>", CALL.removesuffix("</code>")),
        (CALL + "\nCode execution result: 42", "", CALL),  # an invented result
        (CALL + search("x"), "", CALL),
        (ANSWER, "", ANSWER),
        ("<think>Shall I use <code>? No.</think>\n<tool_call>\n{}\n", "", "<think>Shall I use <code>? No.</think>\n"
         "<tool_call>\n{}\n</tool_call>"),
        ("plain", "", "plain"),
        ("", "", ""),
    ],
)  # fmt: skip
def test_a_turn_ends_with_its_first_closing_tag(text, stopped_at, expected):
    assert complete_turn(text, default_tools(), stopped_at) == expected


def test_without_tools_nothing_is_added_or_cut():
    assert complete_turn(CALL + "rest", (), "") == CALL + "rest"


pieces = st.lists(
    st.sampled_from(["<code>", "</code>", "<tool_call>", "</tool_call>", "a", "\n", "</answer>"]), max_size=12
)


@given(pieces.map("".join))
def test_what_a_stopping_server_returns_becomes_what_the_engine_has(text):
    """Catches: a turn that differs from the one that the own engine, which keeps the tag, would have sampled."""
    stops = stop_strings(default_tools())
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    kept = text[: min(ends)] if ends else text
    stop = next((stop for stop in stops if ends and kept.endswith(stop)), None)
    sent = kept.removesuffix(stop) if stop is not None else kept
    assert complete_turn(sent, default_tools(), stop) == kept
    assert complete_turn(text, default_tools()) == (kept if ends else complete_turn(text, default_tools()))


def results():
    """Returns turns with the results of their tools: two images, an error, no call, an image search, an answer."""
    shown = make_image(5)
    return [
        (code("plot()"), ToolResult("r1", "code", Status.OK, "out <image> </code>", images=(shown, shown))),
        (search("tea"), ToolResult("r2", "search", Status.ERROR, message="no engine")),
        ("<think>hm</think>", None),
        (ANSWER, None),
    ]


def test_observations_equal_those_with_token_ids():
    """Catches: another rendering, image limit or order of images than in training."""
    asked = question(3)
    builder = TrajectoryBuilder(PromptEncoder(Tokenizer.from_package(), ImageConfig(), CONFIG), asked)
    dialogue = TextTrajectory(asked, CONFIG)
    for text, result in results():
        first, second = builder.append_scripted_turn(text), dialogue.append_turn(text.removesuffix("</code>"))
        assert first == second
        if builder.finish is None:
            builder.append_tool_output(result)
            dialogue.append_tool_output(result)
    assert dialogue.trajectory().turns == builder.trajectory().turns
    assert dialogue.finish is builder.finish is Finish.ANSWER
    assert sum(len(turn.images) for turn in dialogue.trajectory().turns) == 2
    decoded = builder.trajectory().response_text(Tokenizer.from_package())
    for text in [*(turn.text for turn in builder.trajectory().turns), "Error: no engine"]:
        assert text in decoded and text in turns_text(dialogue.trajectory().turns)


def test_messages_alternate_and_hold_every_image_once():
    """Catches: two turns of the user in a row, which some endpoints merge, and an image that is sent with each turn."""
    dialogue = TextTrajectory(question(3, num_images=1), CONFIG)
    for text, result in results():
        dialogue.append_turn(text)
        if dialogue.finish is None:
            dialogue.append_tool_output(result)
    assert [message["role"] for message in dialogue.messages] == [
        "system",
        "user",
        *["assistant", "user"] * 3,
        "assistant",
    ]
    images = [
        base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
        for message in dialogue.messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    assert images == [make_image(3), make_image(5), make_image(5)]
    assert dialogue.messages[2]["content"] == CALL.replace("1", "plot()", 1)


def test_limits_of_turns_and_images_hold():
    dialogue = TextTrajectory(question(3), CONFIG)
    shown = [2, 0, 0]
    for number in range(CONFIG.max_turns):
        dialogue.append_turn(code(str(number)))
        if dialogue.finish is None:
            image = make_image(number)
            observation = dialogue.append_tool_output(ToolResult("r", "code", Status.OK, images=(image, image)))
            assert len(observation.images) == shown[number]
    assert dialogue.finish is Finish.MAX_TURNS and len(dialogue.trajectory().turns) == CONFIG.max_turns
    with pytest.raises(RuntimeError, match="expects no turn"):
        dialogue.append_turn(ANSWER)


def test_an_empty_turn_ends_the_trajectory():
    dialogue = TextTrajectory(question(3), CONFIG)
    dialogue.append_turn("")
    assert dialogue.finish is Finish.TURN_LIMIT


def test_without_tools_the_prompt_is_the_question_alone():
    (message,) = prompt_messages(question(0, num_images=2), CONFIG, ())
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
    assert message["content"][-1]["text"] == "What is it?"
    (message,) = prompt_messages(question(0, num_images=0), CONFIG, ())
    assert message["content"] == "What is it?"


def test_only_absent_tools_are_rejected():
    dialogue = TextTrajectory(question(3), AgentConfig(tools=("search",), system_prompt="per_tool"))
    assert dialogue.stop_strings == ["</tool_call>"]
    assert dialogue.append_turn(IMAGE_SEARCH).kind == "malformed"
