"""Tests of the GGUF reader on generated files: values, permutation, tokenizer and refused files."""

from __future__ import annotations

import numpy as np
import pytest

from dv2_jax.checkpoint.gguf_file import GGUFLlama
from dv2_jax.model.model_config import ModelConfig

gguf = pytest.importorskip("gguf")

HEADS, KV_HEADS, HEAD_DIM, WIDTH = 4, 2, 8, 32


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a file with one layer and a vocabulary of three tokens and returns its reader."""

    def write(arch="llama", splitting="smollm", **tensors):
        path = tmp_path / f"{arch}-{splitting}.gguf"
        writer = gguf.GGUFWriter(path, arch)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splitting)
        writer.add_token_list(["<|im_end|>", "a", "b"])
        writer.add_token_types([3, 1, 1])
        writer.add_token_merges(["a b"])
        for name, array in tensors.items():
            writer.add_tensor(f"blk.0.{name}.weight", array)
        for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write_part()
        writer.close()
        return GGUFLlama(path)

    return write


@pytest.mark.parametrize(("jax_name", "stored", "heads"), [("q", "attn_q", HEADS), ("k", "attn_k", KV_HEADS)])
def test_query_and_key_rows_are_permuted_back_for_rope(file, jax_name, stored, heads):
    """llama.cpp applies RoPE to rows (2i, 2i + 1) of a head, the model to rows (i, i + hd/2)."""
    rows = np.random.default_rng(0).standard_normal((heads * HEAD_DIM, WIDTH), np.float32)
    kernel = file(**{stored: rows}).array(f"{jax_name}.kernel", (1, WIDTH, heads, HEAD_DIM), (HEADS, KV_HEADS))
    for head in range(heads):
        for i in range(HEAD_DIM // 2):
            np.testing.assert_array_equal(kernel[0, :, head, i], rows[head * HEAD_DIM + 2 * i])
            np.testing.assert_array_equal(kernel[0, :, head, i + HEAD_DIM // 2], rows[head * HEAD_DIM + 2 * i + 1])


def test_values_and_outputs_keep_their_order_and_biases_are_zero(file):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((KV_HEADS * HEAD_DIM, WIDTH), np.float32)
    outputs = rng.standard_normal((WIDTH, HEADS * HEAD_DIM), np.float32)
    read = file(attn_v=values, attn_output=outputs)
    heads = HEADS, KV_HEADS
    np.testing.assert_array_equal(
        read.array("v.kernel", (1, WIDTH, KV_HEADS, HEAD_DIM), heads)[0].reshape(WIDTH, -1), values.T
    )
    np.testing.assert_array_equal(
        read.array("o.kernel", (1, HEADS, HEAD_DIM, WIDTH), heads)[0].reshape(-1, WIDTH), outputs.T
    )
    assert not read.array("q.bias", (1, HEADS, HEAD_DIM), heads).any()


def test_a_quantized_tensor_comes_back_within_its_step(file):
    """Catches: blocks of 32 values, each with its own scale, in the wrong order."""
    rows = np.random.default_rng(0).standard_normal((WIDTH, 64), np.float32) * np.arange(1, 65, dtype=np.float32)
    kinds = gguf.GGMLQuantizationType
    path = file(ffn_down=rows).path.with_name("quantised.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_down.weight", gguf.quantize(rows, kinds.Q4_1), raw_dtype=kinds.Q4_1)
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    found = GGUFLlama(path).array("mlp.down.kernel", (1, 64, WIDTH), (1, 1))[0].T
    blocks = rows.reshape(WIDTH, 2, 32)
    step = (blocks.max(-1) - blocks.min(-1)) / 15
    assert (np.abs(found.reshape(blocks.shape) - blocks) <= 0.51 * step[..., None]).all()


def test_a_missing_layer_and_another_architecture_are_named(file):
    with pytest.raises(ValueError, match=r"no tensor blk\.0\.attn_q\.weight"):
        file().array("q.kernel", (1, WIDTH, HEADS, HEAD_DIM), (HEADS, KV_HEADS))
    with pytest.raises(ValueError, match=r"qwen2-smollm\.gguf: architecture 'qwen2'"):
        file(arch="qwen2")
    with pytest.raises(ValueError, match="no llama.embedding_length in its metadata"):
        file().differences(ModelConfig.preset("smol").text)


def test_added_tokens_in_the_vocabulary_keep_their_ids(file):
    document = file().tokenizer(["<|im_end|>", "<tool_call>"], ordinary=["<tool_call>"])
    assert [(t["content"], t["id"], t["special"]) for t in document["added_tokens"]] == [
        ("<|im_end|>", 0, True),
        ("<tool_call>", 3, False),
    ]
    assert document["model"]["merges"] == [["a", "b"]]


def test_another_splitting_rule_is_refused(file):
    """Catches: a vocabulary read with SmolLM's pre-tokenizer although it needs another, which silently changes ids."""
    with pytest.raises(ValueError, match="'qwen2'.*only .*'smollm'"):
        file(splitting="qwen2").tokenizer([], [])
