"""Tests of Hugging Face checkpoints: round trips are lossless and transformers computes the same logits."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dv2_jax.checkpoint import hf
from dv2_jax.checkpoint.damage import CheckpointMismatch
from dv2_jax.checkpoint.hf import load_hf, save_hf
from dv2_jax.checkpoint.weight_map import weight_entries
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import abstract_params, build, init_params, merge
from dv2_jax.ops.attention import causal_segment_attention


def tiny(tied: bool) -> ModelConfig:
    return ModelConfig.tiny(
        320,
        text=dict(hidden_size=64, num_heads=2, num_layers=3, tie_word_embeddings=tied),
        image_token_id=1, video_token_id=2, vision_start_token_id=3, vision_end_token_id=4, bos_token_id=5,
        eos_token_id=6, pad_token_id=7,
    )  # fmt: skip


def random_params(config: ModelConfig, dtype="float32"):
    """Return parameters with random biases and scales as well, so that swapped biases are detected."""
    params = init_params(config, jax.random.key(0))
    return {
        name: (value + 0.02 * jax.random.normal(jax.random.key(i), value.shape)).astype(dtype).astype(jnp.float32)
        for i, (name, value) in enumerate(params.items())
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_come_back_bit_for_bit_from_one_file_and_from_many(tmp_path, tied, dtype):
    config = tiny(tied)
    params = random_params(config, dtype)
    for name, size in (("one", 10**9), ("many", 50_000)):
        save_hf(tmp_path / name, params, config, dtype, shard_bytes=size)
        again = load_hf(tmp_path / name, config)
        assert {n: np.asarray(v).tobytes() for n, v in again.items()} == {
            n: np.asarray(v).tobytes() for n, v in params.items()
        }
    files = list((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    held = {file.name: load_file(file) for file in files}
    assert index["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
    sizes = {file: [tensor.nbytes for tensor in tensors.values()] for file, tensors in held.items()}
    assert index["metadata"]["total_size"] == sum(map(sum, sizes.values()))
    assert all(sum(s) <= 50_000 or len(s) == 1 for s in sizes.values())


def test_a_large_array_is_filled_layer_by_layer_with_the_same_numbers(tmp_path, monkeypatch):
    config = tiny(tied=True)
    params = random_params(config)
    save_hf(tmp_path / "x", params, config, "float32")
    monkeypatch.setattr(hf, "LARGE_BYTES", 0)
    again = load_hf(tmp_path / "x", config)
    assert all(np.array_equal(again[n], params[n]) for n in params)


# Tensor names that vLLM's Qwen2.5-VL loads: it maps the prefixes `model.`, `visual.` and `lm_head.` and fuses q, k, v and
# gate, up of the text tower itself; it expects q, k, v of the vision tower fused.
VLLM = r"""
lm_head\.weight
model\.(embed_tokens|norm)\.weight
model\.layers\.\d+\.(input_layernorm|post_attention_layernorm)\.weight
model\.layers\.\d+\.self_attn\.[qkv]_proj\.(weight|bias)
model\.layers\.\d+\.self_attn\.o_proj\.weight
model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight
visual\.patch_embed\.proj\.weight
visual\.blocks\.\d+\.norm[12]\.weight
visual\.blocks\.\d+\.attn\.(qkv|proj)\.(weight|bias)
visual\.blocks\.\d+\.mlp\.(gate|up|down)_proj\.(weight|bias)
visual\.merger\.ln_q\.weight
visual\.merger\.mlp\.[02]\.(weight|bias)
"""


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_the_written_names_are_those_that_vllm_reads(size):
    config = ModelConfig.preset(size)
    names = {entry.hf_name for entry in weight_entries(config)}
    known = re.compile("|".join(VLLM.split()))
    assert [name for name in names if not known.fullmatch(name)] == []
    assert ("lm_head.weight" in names) == (not config.text.tie_word_embeddings)
    # 12 per text layer and per vision block, embedding and norm, patch embedding, merger, and the head if untied.
    text, vision = config.text, config.vision
    assert len(names) == 12 * text.num_layers + 12 * vision.depth + 2 + 1 + 5 + (not text.tie_word_embeddings)


def test_loading_and_writing_again_leaves_every_tensor_byte_identical(tmp_path):
    config = tiny(tied=False)
    save_hf(tmp_path / "first", random_params(config), config, "bfloat16")
    save_hf(tmp_path / "second", load_hf(tmp_path / "first", config), config, "bfloat16")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("first", "second"))
    assert first.keys() == second.keys() and all(first[n].tobytes() == second[n].tobytes() for n in first)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_it_strictly_and_computes_the_same_text_logits(tmp_path, tied):
    """Catches: a transposed kernel, permuted heads, swapped query, key and value of a fused tensor."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = tiny(tied)
    params = random_params(config)
    save_hf(tmp_path / "x", params, config, "float32")
    model, info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "x", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    ids = np.random.default_rng(0).integers(10, 320, (2, 40))
    ours = merge(build(config)[0], params)
    positions = jnp.broadcast_to(jnp.arange(40), (3, 2, 40))
    segments = jnp.ones((2, 40), jnp.int32)
    hidden, _ = ours.hidden(
        ours.embed(jnp.asarray(ids)),
        positions,
        lambda q, k, v, cache: (causal_segment_attention(q, k, v, segments), cache),
    )
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(ids)).logits.numpy()
    assert np.abs(np.asarray(ours.logits(hidden)) - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_both_generations_of_key_layouts_load_alike(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = tiny(tied=False)
    params = random_params(config)
    save_hf(tmp_path / "old", params, config, "float32")
    old = load_file(tmp_path / "old" / "model.safetensors")
    renamed = {
        name.replace("visual.", "model.visual.", 1)
        if name.startswith("visual.")
        else name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in old.items()
    }
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "old")
    assert set(renamed) == set(model.state_dict()), "not the names that transformers itself uses in memory"
    (tmp_path / "new").mkdir()
    save_file(renamed, tmp_path / "new" / "model.safetensors")
    again = load_hf(tmp_path / "new", config)
    assert all(np.array_equal(again[n], params[n]) for n in params)


def test_every_mismatch_is_reported_at_once(tmp_path):
    config = tiny(tied=False)
    save_hf(tmp_path / "x", random_params(config), config, "float32")
    file = tmp_path / "x" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    tensors["visual.merger.ln_q.weight"] = np.zeros(5, np.float32)
    tensors["model.layers.9.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    save_file(tensors, file)
    with pytest.raises(CheckpointMismatch) as caught:
        load_hf(tmp_path / "x", config)
    message = str(caught.value)
    assert "missing: model.norm.weight" in message
    assert "shape: visual.merger.ln_q.weight is [5]" in message
    assert "unexpected: model.layers.9.mlp.up_proj.weight" in message


def test_a_truncated_file_is_named(tmp_path):
    config = tiny(tied=True)
    save_hf(tmp_path / "x", random_params(config), config, "float32")
    file = tmp_path / "x" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors is truncated"):
        load_hf(tmp_path / "x", config)


def test_a_failed_write_leaves_no_folder(tmp_path):
    config = tiny(tied=True)
    params = random_params(config)
    del params["text.layers.mlp.down.kernel"]
    with pytest.raises(KeyError):
        save_hf(tmp_path / "x", params, config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["3b", "7b", "32b", "72b"])
def test_the_published_sizes_map_completely(size):
    config = ModelConfig.preset(size)
    mapped = {entry.jax_name for entry in weight_entries(config)}
    assert mapped == set(abstract_params(config, jnp.float32))
    assert json.loads(json.dumps(config.to_hf())) and ModelConfig.from_hf(config.to_hf()) == config
