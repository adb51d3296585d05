"""Tests conversations as training examples: masks by role, and errors that name the row."""

import io

import pytest
from PIL import Image

from dv2_jax.config import ImageConfig
from dv2_jax.data.chat_encoder import ChatEncoder, encode_conversation, escape_special_tokens
from dv2_jax.data.tokenizer import train_bpe

STOP_STRINGS = ("</code>", "</tool_call>")
TAGS = ("code", "tool_call", "tool_response")


@pytest.fixture(scope="module")
def encoder():
    return ChatEncoder(
        train_bpe(["<think>a</think> b stdout"] * 3, 300), ImageConfig(max_pixels=112 * 112), STOP_STRINGS
    )


@pytest.fixture(scope="module")
def encoded_image():
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def trained(encoder, example) -> str:
    return encoder.tokenizer.decode(i for i, m in zip(example.token_ids, example.loss_mask, strict=True) if m)


def test_the_assistant_is_trained_and_nobody_else(encoder, encoded_image):
    messages = [
        {"role": "system", "content": "SYS"},
        {"role": "user", "content": "<image>\nQ"},
        {"role": "assistant", "content": "<think>t1</think><code>\n```python\nx\n```\n</code>\n"},
        {"role": "user", "content": "Code execution result: <|im_end|><image>"},
        {"role": "assistant", "content": "<think>t2</think> hm"},
        {"role": "user", "content": "Error: No action found."},
        {"role": "assistant", "content": "t3</think><answer>5</answer>"},
    ]
    example = encode_conversation(messages, [encoded_image, encoded_image], encoder)
    # Generation stops at </code>, so the white space that follows it was never sampled.
    assert trained(encoder, example) == (
        "<think>t1</think><code>\n```python\nx\n```\n</code>"
        "t2</think> hm<|im_end|>"
        "t3</think><answer>5</answer><|im_end|>"
    )
    dialogue = encoder.tokenizer.decode(example.token_ids)
    pads = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"
    assert dialogue == (
        f"<|im_start|>system\nSYS<|im_end|>\n<|im_start|>user\n{pads}\nQ<|im_end|>\n<|im_start|>assistant\n"
        "<think>t1</think><code>\n```python\nx\n```\n</code><|im_end|>\n"
        f"<|im_start|>user\nCode execution result: <|im_end|>{pads}<|im_end|>\n"
        "<|im_start|>assistant\n<think>t2</think> hm<|im_end|>\n"
        "<|im_start|>user\nError: No action found.<|im_end|>\n<|im_start|>assistant\n"
        "t3</think><answer>5</answer><|im_end|>"
    )
    # The <|im_end|> that the tool printed is encoded as text; only the seven real ones are control tokens.
    assert example.token_ids.count(encoder.im_end) == 7
    assert len(example.images) == 2 and len(example.loss_mask) == len(example.token_ids)


def test_conversations_out_of_order_are_refused_by_name(encoder, encoded_image):
    user, assistant = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    for messages, images, match in (
        ([user], [], "no assistant"),
        ([user, assistant, user], [], "alternate"),
        ([user, assistant, assistant], [], "alternate"),
        ([user, assistant], [encoded_image], "0 <image> markers, 1 images"),
        ([{"role": "user", "content": "<image>"}, assistant], [], "1 <image> markers, 0 images"),
    ):
        with pytest.raises(ValueError, match=match) as raised:
            encode_conversation(messages, images, encoder, example_id="row:7")
        assert "row:7" in str(raised.value)


@pytest.mark.parametrize(
    "tag", ["<|im_end|>", "<image>", "<video>", "<think>", "</think>", "<tool_call>", "</tool_response>"]
)
def test_escaped_text_contains_no_tag_and_escaping_is_idempotent(tag):
    text = f"<{tag}{tag}<b> a < b |x|"
    assert tag not in (once := escape_special_tokens(text, TAGS)) and escape_special_tokens(once, TAGS) == once
    assert escape_special_tokens("<b> if a < b: <|x y|> </div>", TAGS) == "<b> if a < b: <|x y|> </div>"
