"""A very small model and made-up examples with pictures, shared by the recipe tests."""

import hashlib

import jax
import numpy as np
import pytest

from dv2_jax.data.chat_encoder import PictureInput
from dv2_jax.data.packing import Example, PackSpec
from dv2_jax.model import ModelConfig, VisionBucket, build, init_params

IMAGE, PAD = 10, 14
SPECIAL = {"image_token_id": IMAGE, "video_token_id": 11, "vision_start_token_id": 12, "vision_end_token_id": 13,
           "bos_token_id": PAD, "eos_token_id": 15, "pad_token_id": PAD}  # fmt: skip


def picture(rng, height=4, width=4) -> PictureInput:
    """Noise of height x width patches, preprocessed."""
    frame = rng.normal(size=(height * width, 3, 1, 14 * 14)).astype(np.float32)
    patches = np.repeat(frame, 2, axis=2).reshape(height * width, -1)
    return PictureInput(hashlib.sha256(patches.tobytes()).hexdigest()[:24], patches, (1, height, width))


def example(rng, length, pictures=(), *, advantage=0.0, vocabulary=64) -> Example:
    """Random text with the pictures' placeholders after the first tokens; the later half carries random 0/1 weight."""
    ids = list(rng.integers(20, vocabulary, length))
    at = 2
    for p in pictures:
        ids[at : at + p.tokens + 2] = [12, *[IMAGE] * p.tokens, 13]
        at += p.tokens + 4
    weight = (rng.random(len(ids)) < 0.7) * (np.arange(len(ids)) > at)
    return Example(
        ids, weight.astype(np.float32), tuple(pictures), -rng.exponential(1.0, len(ids)).astype(np.float32), advantage
    )


def make_examples(seed=0, count=9) -> list[Example]:
    """Lengths 20 to 60; every second has pictures, some shared between examples, of several shapes."""
    rng = np.random.default_rng(seed)
    shared = [picture(rng), picture(rng, 2, 6)]
    out = []
    for i in range(count):
        own = () if i % 2 else (shared[i // 2 % 2],) if i % 4 else (shared[0], picture(rng, 4, 2))
        out.append(example(rng, int(rng.integers(30, 61)), own, advantage=float(rng.normal())))
    return out


def tiny_config() -> ModelConfig:
    return ModelConfig.tiny(
        64, **SPECIAL, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48,
        mrope_section=(1, 1, 2), vision_depth=2, vision_hidden_size=16, vision_num_heads=2,
        vision_intermediate_size=24, fullatt_block_indexes=(1,),
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny():
    """(model config, graphdef, params) of a 50,000-parameter Qwen2.5-VL."""
    config = tiny_config()
    return config, build(config)[0], init_params(config, jax.random.key(0))


@pytest.fixture(scope="session")
def spec(tiny):
    """Rows of 128 tokens; pictures in one of two shapes."""

    def make(rows=2, groups=1, row_tokens=128):
        return PackSpec(tiny[0], rows, row_tokens, (VisionBucket.of(4, 64), VisionBucket.of(12, 64)), groups)

    return make


@pytest.fixture(scope="session")
def examples():
    return make_examples()
