"""A very small model and synthetic examples with images, shared by the trainer tests."""

import hashlib

import jax
import numpy as np
import pytest

from dv2_jax.data.chat_encoder import ImageInput
from dv2_jax.data.packing import Example, PackSpec
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import build, init_params
from dv2_jax.model.vision_inputs import VisionBucket

IMAGE, PAD = 10, 14
SPECIAL = {"image_token_id": IMAGE, "video_token_id": 11, "vision_start_token_id": 12, "vision_end_token_id": 13,
           "bos_token_id": PAD, "eos_token_id": 15, "pad_token_id": PAD}  # fmt: skip


def random_image(rng, height=4, width=4) -> ImageInput:
    """Return a preprocessed noise image of height x width patches."""
    frame = rng.normal(size=(height * width, 3, 1, 14 * 14)).astype(np.float32)
    patches = np.repeat(frame, 2, axis=2).reshape(height * width, -1)
    return ImageInput(hashlib.sha256(patches.tobytes()).hexdigest()[:24], patches, (1, height, width))


def example(rng, length, images=(), *, advantage=0.0, vocabulary=64) -> Example:
    """Return random text with image placeholders after the first tokens; later tokens have random 0/1 loss weight."""
    ids = list(rng.integers(20, vocabulary, length))
    at = 2
    for image in images:
        ids[at : at + image.tokens + 2] = [12, *[IMAGE] * image.tokens, 13]
        at += image.tokens + 4
    weight = (rng.random(len(ids)) < 0.7) * (np.arange(len(ids)) > at)
    return Example(
        ids, weight.astype(np.float32), tuple(images), -rng.exponential(1.0, len(ids)).astype(np.float32), advantage
    )


def make_examples(seed=0, count=9) -> list[Example]:
    """Return examples of 30 to 60 tokens; every second one has images of several shapes, some shared between examples."""
    rng = np.random.default_rng(seed)
    shared = [random_image(rng), random_image(rng, 2, 6)]
    out = []
    for i in range(count):
        if i % 2:
            images = ()
        elif i % 4:
            images = (shared[i // 2 % 2],)
        else:
            images = (shared[0], random_image(rng, 4, 2))
        out.append(example(rng, int(rng.integers(30, 61)), images, advantage=float(rng.normal())))
    return out


def tiny_config() -> ModelConfig:
    return ModelConfig.tiny(
        64,
        text=dict(hidden_size=32, num_layers=2, intermediate_size=48, mrope_section=(1, 1, 2)),
        vision=dict(hidden_size=16, num_heads=2, intermediate_size=24),
        **SPECIAL,
    )


@pytest.fixture(scope="session")
def tiny():
    """Return (model config, graphdef, params) of a Qwen2.5-VL with 50,000 parameters."""
    config = tiny_config()
    return config, build(config)[0], init_params(config, jax.random.key(0))


@pytest.fixture(scope="session")
def spec(tiny):
    """Return a factory of pack specs with rows of 128 tokens and two image buckets."""

    def make(rows=2, groups=1, row_tokens=128):
        return PackSpec(
            tiny[0], rows, row_tokens, (VisionBucket.for_patches(4, 64), VisionBucket.for_patches(12, 64)), groups
        )

    return make


@pytest.fixture(scope="session")
def examples():
    return make_examples()
