"""Architectures and their `config.json`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from samples import tiny_config

from dv2_jax.model import ModelConfig, abstract_params

SIZES = ["3b", "7b", "32b", "72b"]


@pytest.mark.parametrize(("name", "published"), [("3b", "3.75"), ("7b", "8.29"), ("32b", "33.5"), ("72b", "73.4")])
def test_published_sizes_have_the_published_number_of_parameters(name, published):
    """Billions as the model pages show them: a wrong width, depth, vocabulary or tie changes them."""
    total = sum(int(np.prod(p.shape)) for p in abstract_params(ModelConfig.preset(name)).values()) / 1e9
    assert f"{total:.3g}" == published


@pytest.mark.parametrize(
    "config", [tiny_config(), tiny_config(tie_word_embeddings=False), *map(ModelConfig.preset, SIZES)]
)
def test_config_json_comes_back_unchanged(config):
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize("config", [tiny_config(), ModelConfig.preset("7b")], ids=["tiny", "7b"])
def test_what_transformers_writes_again_is_read_alike(config):
    """Current transformers nests the text fields and renames the rotary ones."""
    transformers = pytest.importorskip("transformers")
    written = json.loads(transformers.Qwen2_5_VLConfig(**config.to_hf()).to_json_string(use_diff=False))
    assert "text_config" in written
    assert ModelConfig.from_hf(written) == config


def test_the_published_3b_file_which_leaves_out_defaults_is_read():
    """As released: its vision_config names neither depth nor heads nor windows, its rope type is `default`."""
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
        ({"mrope_section": (4, 4, 4)}, "must sum to half of head_dim 32"),
        ({"num_kv_heads": 3}, "must be a multiple"),
        ({"vision_num_heads": 3}, "must be a multiple of 4"),
        ({"window_size": 100}, "whole merged tokens"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_unknown_presets_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'8b'; known: 3b, 7b, 32b, 72b"):
        ModelConfig.preset("8b")
