"""Questions and observations as ids: the strings of spec 2.5, pictures where their markers are, nothing injected."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dv2_jax.agent.observation import Observation, render
from dv2_jax.agent.parser import Turn
from dv2_jax.data.images import smart_resize
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import ADDED_TOKENS
from tests.agent.tool_results import Result, png


def placeholders(codec, width: int, height: int) -> int:
    config = codec.image_config
    rows, columns = smart_resize(height, width, min_pixels=config.min_pixels, max_pixels=config.max_pixels)
    return (rows // 28) * (columns // 28)


def picture_text(codec, width: int, height: int) -> str:
    return "<|vision_start|>" + "<|image_pad|>" * placeholders(codec, width, height) + "<|vision_end|>"


def test_a_prompt_is_the_chat_template_with_expanded_pictures(codec, tokenizer):
    messages = (
        {"role": "system", "content": "Use <tool_call>."},
        {"role": "user", "content": "<image>\n<image>Which is larger?\n"},
    )
    question = Question("q", "perception", "perception", "", (png(60, 40), png(200, 90)), "a", messages=messages)
    segment = codec.prompt(question)
    assert list(segment.token_ids) == tokenizer.encode(
        "<|im_start|>system\nUse <tool_call>.<|im_end|>\n<|im_start|>user\n"
        f"{picture_text(codec, 60, 40)}\n{picture_text(codec, 200, 90)}Which is larger?\n<|im_end|>\n"
        "<|im_start|>assistant\n",
        allow_special=True,
    )
    assert [picture.grid for picture in segment.images] == [(1, 4, 6), (1, 4, 10)]
    for picture in segment.images:
        assert picture.patches.shape == (np.prod(picture.grid), 1176) and picture.tokens == np.prod(picture.grid) // 4


def test_messages_without_a_system_message_get_qwens(codec, tokenizer):
    question = Question("q", "s", "reason", "", (), "a", messages=({"role": "user", "content": "Hi"},))
    assert tokenizer.decode(codec.prompt(question).token_ids).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


@pytest.mark.parametrize("prefill", [True, False])
def test_an_observation_is_spliced_as_released(make_codec, tokenizer, prefill):
    codec = make_codec(prefill_think=prefill)
    segment = codec.observation(Observation("Code execution result:\n\nImages:\n<image>", (png(60, 40),)))
    think = "<think>" if prefill else ""
    assert list(segment.token_ids) == tokenizer.encode(
        "<|im_end|>\n<|im_start|>user\nCode execution result:\n\nImages:\n"
        f"{picture_text(codec, 60, 40)}<|im_end|>\n<|im_start|>assistant\n{think}",
        allow_special=True,
    )


def test_equal_pictures_share_a_digest_and_another_resolution_does_not(codec):
    first, again, other = (
        codec.chat.picture(png(seed=1)),
        codec.chat.picture(png(seed=1)),
        codec.chat.picture(png(seed=2)),
    )
    assert first.digest == again.digest != other.digest
    from dv2_jax.config import ImageConfig
    from dv2_jax.data.chat_encoder import ChatEncoder

    larger = ChatEncoder(codec.tokenizer, ImageConfig(max_pixels=200 * 200)).picture(png(seed=1))
    assert larger.digest != first.digest


def test_markers_and_pictures_that_differ_in_number_are_an_error(codec):
    with pytest.raises(ValueError, match="2 <image> markers for 1 pictures"):
        codec.observation(Observation("<image><image>", (png(),)))
    with pytest.raises(ValueError, match="1 pictures but 0 <image>"):
        messages = ({"role": "user", "content": "no marker"},)
        codec.prompt(Question("q", "s", "reason", "", (png(),), "a", messages=messages))


PIECES = [
    *ADDED_TOKENS,
    "<image>",
    "</think>",
    "<",
    "|im_end|>",
    "x",
    "\n",
    "é",
    "```",
    "{stdout}",
    "\udc80".encode("utf-8", "replace").decode(),
]


@settings(max_examples=100)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=30))
def test_whatever_a_tool_prints_the_control_tokens_are_ours(codec, agent, stdout, stderr):
    """Catches text that ends a turn, opens one or stands for a picture; 5 = im_end, im_start, im_end, im_start, ..."""
    picture = png(60, 40)
    seen = render(Turn("code", "x"), Result(stdout=stdout, stderr=stderr, images=(picture,)), agent)
    added = [i for i in codec.observation(seen).token_ids if i in set(codec.tokenizer.added_ids.values())]
    names = [codec.tokenizer.token_bytes(i).decode() for i in added]
    pads = placeholders(codec, 60, 40)
    assert names == [
        "<|im_end|>", "<|im_start|>", "<|vision_start|>", *["<|image_pad|>"] * pads, "<|vision_end|>", "<|im_end|>",
        "<|im_start|>",
    ]  # fmt: skip
