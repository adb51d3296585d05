"""A small Qwen2.5-VL with every part of the published one, and images in which every pixel matters."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dv2_jax.data.images import preprocess
from dv2_jax.model.model_config import ModelConfig

IDS = dict(
    image_token_id=10,
    video_token_id=11,
    vision_start_token_id=12,
    vision_end_token_id=13,
    bos_token_id=14,
    eos_token_id=15,
    pad_token_id=14,
)


def tiny_config(*, text=None, vision=None, **token_ids) -> ModelConfig:
    """Returns a small architecture with alternating windowed and full vision blocks; ids above 15 are text."""
    text_sizes = dict(hidden_size=64, num_heads=2, num_kv_heads=1, num_layers=3, intermediate_size=96)
    vision_sizes = dict(depth=4, hidden_size=32, num_heads=2, intermediate_size=48, fullatt_block_indexes=(1, 3))
    return ModelConfig.tiny(
        256, text=text_sizes | (text or {}), vision=vision_sizes | (vision or {}), **(IDS | token_ids)
    )


def structured_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """Draws gradients that differ along both axes, plus noise, so that swapped axes and permuted patches are visible."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, 3))
    return Image.fromarray(((np.stack([3 * x + y, 2 * y, x * y // 7], -1) + noise) % 256).astype(np.uint8))


def images_of(sizes, max_pixels: int):
    return [
        preprocess(structured_image(*size, seed=i), min_pixels=56 * 56, max_pixels=max_pixels)
        for i, size in enumerate(sizes)
    ]
