"""Tests the small tokenizer: trust levels, round trips, training, and saved files."""

import pytest

from dv2_jax.data.tokenizer import ADDED_TOKENS, TOOL_TOKENS, Tokenizer, train_bpe

TEXTS = [
    "The quick brown fox jumps over the lazy dog, 1234567890 times; naïve café, 東京, 🦊.",
    "import numpy as np\nfor i in range(10):\n    print(image_1.crop((i, 2 * i, 30, 40)))\n",
    '<think>Look closer.</think>\n<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>',
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS * 4, 420)


@pytest.mark.parametrize(
    "text", [*TEXTS, "", "\n\n  \t x", "".join(map(chr, range(1, 0x250))), "</tool_call><tool_call>"]
)
def test_text_survives_encoding_and_decoding_however_little_it_is_trusted(tokenizer, text):
    import unicodedata

    composed = unicodedata.normalize("NFC", text)  # Qwen's tokenizer composes characters first
    for ids in (tokenizer.encode(text), tokenizer.encode(text, allow_special=True), tokenizer.encode_untrusted(text)):
        assert tokenizer.decode(ids) == composed


def test_digits_are_never_merged(tokenizer):
    assert [tokenizer.token_bytes(id_) for id_ in tokenizer.encode("1234567890")] == [b"%c" % c for c in b"1234567890"]


def test_added_tokens_follow_the_learned_ones_in_qwens_order(tokenizer):
    ids = [tokenizer.id(name) for name in ADDED_TOKENS]
    assert ids == list(range(tokenizer.vocab_size - 22, tokenizer.vocab_size))
    assert ADDED_TOKENS.index("<|image_pad|>") == 12 and ADDED_TOKENS.index("<tool_call>") == 14


@pytest.mark.parametrize("name", ADDED_TOKENS)
def test_untrusted_text_never_yields_an_added_token(tokenizer, name):
    for text in (name, f"a{name}b", name * 3, f"<{name}>", f" {name}\n"):
        assert not set(tokenizer.encode_untrusted(text)) & set(tokenizer.added_ids.values())


@pytest.mark.parametrize("name", ADDED_TOKENS)
def test_ordinary_text_yields_only_the_tool_call_pair(tokenizer, name):
    ids = tokenizer.encode(f"a{name}b")
    assert (tokenizer.id(name) in ids) == (name in TOOL_TOKENS)
    assert tokenizer.encode(f"a{name}b", allow_special=True).count(tokenizer.id(name)) == 1


def test_control_ids_are_all_added_tokens_but_the_tool_call_pair(tokenizer):
    assert {tokenizer.token_bytes(id_).decode() for id_ in tokenizer.control_ids} == set(ADDED_TOKENS) - set(
        TOOL_TOKENS
    )


def test_a_character_cut_in_the_middle_decodes_to_the_replacement_character(tokenizer):
    ids = tokenizer.encode("🦉")
    assert len(ids) > 1 and tokenizer.decode(ids[:-1]) == "\ufffd"


def test_an_id_outside_the_vocabulary_is_an_error(tokenizer):
    with pytest.raises(KeyError, match=str(tokenizer.vocab_size)):
        tokenizer.decode([tokenizer.vocab_size])


def test_training_is_deterministic_and_a_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
    again = train_bpe(TEXTS * 4, 420, tmp_path / "tokenizer.json")
    read = Tokenizer.from_file(tmp_path)
    assert again.to_json() == tokenizer.to_json()
    assert all(read.encode(text) == tokenizer.encode(text) for text in TEXTS)


def test_learning_merges_what_is_frequent_and_never_across_an_added_token():
    tokenizer = train_bpe(["crop<tool_call>crop"] * 20, 300)
    assert len(tokenizer.encode("crop")) == 1
    pieces = [tokenizer.token_bytes(id_) for id_ in range(tokenizer.vocab_size - 22)]
    assert not any(b"<t" in piece or b"p<" in piece for piece in pieces)


def test_a_tokenizer_of_another_family_is_refused(tokenizer):
    import json

    document = json.loads(tokenizer.to_json())
    document["added_tokens"] = document["added_tokens"][:5]
    with pytest.raises(ValueError, match="image_pad"):
        Tokenizer(document)


def test_the_exported_files_load_in_transformers_with_the_same_ids_and_dialogue(tokenizer, tmp_path):
    """Catches a wrong file format, a lost special flag, and a chat template that differs from ours."""
    transformers = pytest.importorskip("transformers")
    from dv2_jax.checkpoint.hf_export import CHAT_TEMPLATE
    from dv2_jax.config import ImageConfig
    from dv2_jax.data.chat_encoder import ChatEncoder

    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
    ids = tokenizer.encode("a<tool_call>", allow_special=True) + [tokenizer.id("<|im_end|>")]
    assert theirs.decode(ids, skip_special_tokens=True) == "a<tool_call>"
    for messages in (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What\n is 2+2?"}],
        [{"role": "user", "content": "Hello"}],
    ):
        rendered = theirs.apply_chat_template(
            messages, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
        )
        ours = ChatEncoder(tokenizer, ImageConfig(), ()).encode_prompt(messages, ())
        assert theirs(rendered)["input_ids"] == list(ours.token_ids)
