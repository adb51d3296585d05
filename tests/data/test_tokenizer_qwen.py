"""Tests the published vocabulary, rebuilt from the rank file that the dashscope package ships."""

import importlib.util
from pathlib import Path

import pytest

from dv2_jax.data.tokenizer import SPLIT_PATTERN, Tokenizer

pytestmark = pytest.mark.second_stage

TEXTS = [
    "Hello, world! It's 2024; 3.14159 and 1,234,567.",
    "import matplotlib.pyplot as plt\n\nplt.imshow(image_1.crop((900, 300, 1200, 520)))\nplt.axis('off')\n",
    "<think>Need a closer look.</think>\n<code>\n```python\nprint(1)\n```\n</code>",
    "北京的天安门 — Müller's naïve façade, e\u0301tude, 🦊🏳️‍🌈 \u00a0\u3000 zero\u200bwidth",
    "   leading, trailing   \n\n\n\t\ttabs\r\nand CRLF \n",
    "I'LL don'T WE'RE",
]


@pytest.fixture(scope="module")
def ranks() -> Path:
    package = importlib.util.find_spec("dashscope")
    if package is None:
        pytest.skip("the vocabulary is not here: pip install --no-deps dashscope")
    return Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"


@pytest.fixture(scope="module")
def qwen(ranks) -> Tokenizer:
    return Tokenizer.from_tiktoken_vocab(ranks)


def test_the_added_tokens_have_their_published_ids(qwen):
    published = {
        "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652,
        "<|vision_end|>": 151653, "<|vision_pad|>": 151654, "<|image_pad|>": 151655, "<|video_pad|>": 151656,
        "<tool_call>": 151657, "</tool_call>": 151658,
    }  # fmt: skip
    assert {name: qwen.id(name) for name in published} == published
    assert qwen.vocab_size == 151665


def test_ids_equal_those_of_a_rank_driven_encoder(qwen, ranks):
    """Catches a wrong merge, merge order or split; the oracle, tiktoken, merges by rank without a list of merges."""
    import unicodedata

    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    oracle = tiktoken.Encoding(
        "qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=load_tiktoken_bpe(str(ranks)), special_tokens={}
    )
    for text in [*TEXTS, Path(__file__).read_text(encoding="utf-8"), Path(tiktoken.__file__).read_text()]:
        assert qwen.encode_untrusted(text) == oracle.encode_ordinary(unicodedata.normalize("NFC", text))


def test_ids_equal_those_of_transformers(qwen, tmp_path):
    """Catches a difference in the split pattern, the normalizer or the added tokens."""
    transformers = pytest.importorskip("transformers")

    qwen.save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    theirs = transformers.Qwen2Tokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "<tool_call>\n{}\n</tool_call>"]:
        assert theirs(text)["input_ids"] == qwen.encode(text)
        assert theirs.decode(qwen.encode(text)) == qwen.decode(qwen.encode(text))
    special = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>x<|im_end|>\n"
    assert theirs(special)["input_ids"] == qwen.encode(special, allow_special=True)


def test_tool_call_is_one_token_and_the_other_tags_are_ordinary_text(qwen):
    assert qwen.encode("<tool_call>") == [151657] and qwen.encode("</tool_call>") == [151658]
    for tag in ("<think>", "</think>", "<code>", "</code>", "<answer>", "</answer>"):
        assert len(qwen.encode(tag)) > 1


def test_a_code_tag_can_end_inside_a_token(qwen):
    """Shows that generation must stop at the token that completes `</code>` and keep the entire token."""
    pieces = [qwen.token_bytes(id_) for id_ in qwen.encode("</code>\n")]
    assert pieces == [b"</", b"code", b">\n"]
