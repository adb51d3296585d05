"""Tests questions and observations as ids: the released layout, images at their markers, no injected control token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dv2_jax.agent.observation import Observation, render_observation
from dv2_jax.agent.parser import ParsedTurn
from dv2_jax.data.images import smart_resize
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import ADDED_TOKENS
from tests.agent.tool_results import Result, png


def placeholders(prompt_encoder, width: int, height: int) -> int:
    config = prompt_encoder.image_config
    rows, columns = smart_resize(height, width, min_pixels=config.min_pixels, max_pixels=config.max_pixels)
    return (rows // 28) * (columns // 28)


def image_text(prompt_encoder, width: int, height: int) -> str:
    return "<|vision_start|>" + "<|image_pad|>" * placeholders(prompt_encoder, width, height) + "<|vision_end|>"


def test_a_prompt_is_the_chat_template_with_expanded_images(prompt_encoder, tokenizer):
    messages = (
        {"role": "system", "content": "Use <tool_call>."},
        {"role": "user", "content": "<image>\n<image>Which is larger?\n"},
    )
    question = Question("q", "perception", "perception", "", (png(60, 40), png(200, 90)), "a", messages=messages)
    segment = prompt_encoder.encode_question(question)
    assert list(segment.token_ids) == tokenizer.encode(
        "<|im_start|>system\nUse <tool_call>.<|im_end|>\n<|im_start|>user\n"
        f"{image_text(prompt_encoder, 60, 40)}\n{image_text(prompt_encoder, 200, 90)}Which is larger?\n<|im_end|>\n"
        "<|im_start|>assistant\n",
        allow_special=True,
    )
    assert [image.grid for image in segment.images] == [(1, 4, 6), (1, 4, 10)]
    for image in segment.images:
        assert image.patches.shape == (np.prod(image.grid), 1176) and image.tokens == np.prod(image.grid) // 4


def test_messages_without_a_system_message_get_qwens(prompt_encoder, tokenizer):
    question = Question("q", "s", "reason", "", (), "a", messages=({"role": "user", "content": "Hi"},))
    assert tokenizer.decode(prompt_encoder.encode_question(question).token_ids).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


@pytest.mark.parametrize("prefill", [True, False])
def test_an_observation_is_encoded_as_released(make_prompt_encoder, tokenizer, prefill):
    prompt_encoder = make_prompt_encoder(prefill_think=prefill)
    segment = prompt_encoder.encode_observation(
        Observation("Code execution result:\n\nImages:\n<image>", (png(60, 40),))
    )
    think = "<think>" if prefill else ""
    assert list(segment.token_ids) == tokenizer.encode(
        "<|im_end|>\n<|im_start|>user\nCode execution result:\n\nImages:\n"
        f"{image_text(prompt_encoder, 60, 40)}<|im_end|>\n<|im_start|>assistant\n{think}",
        allow_special=True,
    )


def test_equal_images_share_a_digest_and_another_resolution_does_not(prompt_encoder):
    first, again, other = (
        prompt_encoder.chat.encode_image(png(seed=1)),
        prompt_encoder.chat.encode_image(png(seed=1)),
        prompt_encoder.chat.encode_image(png(seed=2)),
    )
    assert first.digest == again.digest != other.digest
    from dv2_jax.config import ImageConfig
    from dv2_jax.data.chat_encoder import ChatEncoder

    larger = ChatEncoder(prompt_encoder.tokenizer, ImageConfig(max_pixels=200 * 200), ()).encode_image(png(seed=1))
    assert larger.digest != first.digest


def test_markers_and_images_that_differ_in_number_are_an_error(prompt_encoder):
    with pytest.raises(ValueError, match="2 <image> markers for 1 images"):
        prompt_encoder.encode_observation(Observation("<image><image>", (png(),)))
    with pytest.raises(ValueError, match="1 images but 0 <image>"):
        messages = ({"role": "user", "content": "no marker"},)
        prompt_encoder.encode_question(Question("q", "s", "reason", "", (png(),), "a", messages=messages))


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
def test_whatever_a_tool_prints_the_control_tokens_are_ours(prompt_encoder, agent, stdout, stderr):
    """Catches tool output that ends a turn, opens one or acts as an image placeholder."""
    image = png(60, 40)
    seen = render_observation(ParsedTurn("code", "x"), Result(stdout=stdout, stderr=stderr, images=(image,)), agent)
    added = [
        i
        for i in prompt_encoder.encode_observation(seen).token_ids
        if i in set(prompt_encoder.tokenizer.added_ids.values())
    ]
    names = [prompt_encoder.tokenizer.token_bytes(i).decode() for i in added]
    pads = placeholders(prompt_encoder, 60, 40)
    assert names == [
        "<|im_end|>", "<|im_start|>", "<|vision_start|>", *["<|image_pad|>"] * pads, "<|vision_end|>", "<|im_end|>",
        "<|im_start|>",
    ]  # fmt: skip
