"""Tests of architectures and their `config.json`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import abstract_params
from tests.model.samples import tiny_config

SIZES = ["3b", "7b", "32b", "72b"]


@pytest.mark.parametrize(("name", "published"), [("3b", "3.75"), ("7b", "8.29"), ("32b", "33.5"), ("72b", "73.4")])
def test_published_sizes_have_the_published_number_of_parameters(name, published):
    """Catches: a wrong width, depth, vocabulary or tie. Expects the billions that the model pages state."""
    total = sum(int(np.prod(p.shape)) for p in abstract_params(ModelConfig.preset(name)).values()) / 1e9
    assert f"{total:.3g}" == published


@pytest.mark.parametrize(
    "config", [tiny_config(), tiny_config(text={"tie_word_embeddings": False}), *map(ModelConfig.preset, SIZES)]
)
def test_config_json_comes_back_unchanged(config):
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


# The fields that differ between the released config.json files: width, feed-forward, layers, heads, key/value heads,
# vocabulary, the vision tower's feed-forward, tied embeddings.
RELEASED = {
    "3b": (2048, 11008, 36, 16, 2, 151936, 3420, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, 3420, False),
    "32b": (5120, 27648, 64, 40, 8, 152064, 3456, False),
    "72b": (8192, 29568, 80, 64, 8, 152064, 3456, False),
}


def released(size: str) -> dict:
    """Returns a released config.json, in the flat layout of the first generation."""
    width, feed_forward, layers, heads, kv_heads, vocabulary, vision_feed_forward, tied = RELEASED[size]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
        "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu",
        "hidden_size": width, "initializer_range": 0.02, "intermediate_size": feed_forward,
        "max_position_embeddings": 128000, "max_window_layers": layers, "model_type": "qwen2_5_vl",
        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": vocabulary,
        "vision_config": {
            "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": vision_feed_forward,
            "num_heads": 16, "in_chans": 3, "out_hidden_size": width, "patch_size": 14, "spatial_merge_size": 2,
            "spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2, "temporal_patch_size": 2,
        },
    }  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_released_files_of_both_generations_are_the_presets(size):
    """Catches: the layout of current transformers, which nests the text fields and renames the rotary ones."""
    transformers = pytest.importorskip("transformers")
    flat = released(size)
    assert ModelConfig.from_hf(flat) == ModelConfig.preset(size)
    nested = json.loads(transformers.Qwen2_5_VLConfig(**flat).to_json_string(use_diff=False))
    assert nested["text_config"]["hidden_size"] == flat["hidden_size"] and "rope_theta" not in nested
    for field in flat.keys() & nested["text_config"].keys() - {"architectures", "model_type"}:
        nested.pop(field, None)  # older releases repeat these at the root
    nested["tie_word_embeddings"] = flat["tie_word_embeddings"]
    assert ModelConfig.from_hf(nested) == ModelConfig.preset(size)


def test_what_transformers_writes_again_is_read_alike():
    transformers = pytest.importorskip("transformers")
    written = json.loads(transformers.Qwen2_5_VLConfig(**tiny_config().to_hf()).to_json_string(use_diff=False))
    assert "text_config" in written
    assert ModelConfig.from_hf(written) == tiny_config()


def test_the_published_3b_file_which_leaves_out_defaults_is_read():
    """Catches: missing defaults. The released vision_config has no depth, heads or windows; the rope type is `default`."""
    released = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "bos_token_id": 151643, "eos_token_id": 151645,
        "hidden_act": "silu", "hidden_size": 2048, "image_token_id": 151655, "intermediate_size": 11008,
        "max_position_embeddings": 128000, "model_type": "qwen2_5_vl", "num_attention_heads": 16, "num_hidden_layers": 36,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        "use_sliding_window": False, "video_token_id": 151656, "vocab_size": 151936, "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
        "vision_config": {"hidden_size": 1280, "in_chans": 3, "model_type": "qwen2_5_vl", "out_hidden_size": 2048,
                          "spatial_patch_size": 14, "tokens_per_second": 2},
    }  # fmt: skip
    assert ModelConfig.from_hf(released) == ModelConfig.preset("3b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2_vl"}, "'qwen2_vl' is not 'qwen2_5_vl'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"image_token_id": 999_999}, "image_token_id 999999 is outside the vocabulary"),
    ],
)
def test_what_the_model_does_not_have_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(ModelConfig.preset("7b").to_hf() | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": {"mrope_section": (4, 4, 4)}}, "must sum to half of head_dim 32"),
        ({"text": {"num_kv_heads": 3}}, "must be a multiple"),
        ({"vision": {"num_heads": 3}}, "must be a multiple of 4"),
        ({"vision": {"window_size": 100}}, "must be a multiple of patch_size"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_unknown_presets_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'8b'; known: 3b, 7b, 32b, 72b"):
        ModelConfig.preset("8b")
