"""The workload of `benchmarks.model`: a small Qwen2.5-VL and inputs of three shapes, as files that every side reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dv2_jax.checkpoint.hf import save_hf
from dv2_jax.model.image_grid import num_image_tokens
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import abstract_params
from dv2_jax.model.positions import mrope_positions

SHAPES = ("text", "image", "packed")
# 4 million parameters; wide enough that matrix products and attention dominate as in larger models.
CONFIG = ModelConfig.tiny(
    1024,
    text=dict(
        hidden_size=256, intermediate_size=512, mrope_section=(8, 12, 12), tie_word_embeddings=False, rope_theta=1e6,
        max_position_embeddings=8192,
    ),
    vision=dict(depth=4, hidden_size=128, num_heads=4, intermediate_size=256, fullatt_block_indexes=(1, 3)),
    image_token_id=10, video_token_id=11, vision_start_token_id=12, vision_end_token_id=13, bos_token_id=14,
    eos_token_id=15, pad_token_id=14,
)  # fmt: skip


def write_model(folder: Path) -> None:
    """Writes random weights in the checkpoint format of transformers."""
    rng = np.random.default_rng(1)
    params = {
        name: np.ones(p.shape, np.float32)
        if name.endswith("scale")
        else 0.05 * rng.standard_normal(p.shape, np.float32)
        for name, p in abstract_params(CONFIG).items()
    }
    save_hf(folder, params, CONFIG, "float32")


def write_shape(file: Path, name: str, divide: int = 1) -> int:
    """Writes ids, segments [B T], positions [3 B T] and, with an image, patches and grid; returns the token count.

    text: 8 rows of 512 tokens. image: one of 1,008 × 1,008 pixels and 256 text tokens. packed: one row of 4,096
    tokens with six conversations. `divide` divides row lengths (and the image's sides).
    """
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    if name == "text":
        rows, length = 8, 512 // divide
        ids = rng.integers(20, CONFIG.text.vocab_size, (rows, length))
        positions = np.broadcast_to(np.arange(length), (3, rows, length))
        segments = np.ones_like(ids)
    elif name == "image":
        side = max(4, 72 // divide // 2 * 2)
        grid = (1, side, side)
        frame = rng.normal(size=(side * side, 3, 1, 14 * 14)).astype(np.float32)
        arrays["patches"] = np.repeat(frame, 2, axis=2).reshape(side * side, -1)
        arrays["grid"] = np.array(grid)
        length = 256 // divide - num_image_tokens(grid) % 2  # even length, divisible over two devices
        text = rng.integers(20, CONFIG.text.vocab_size, length)
        ids = np.array([[12, *[CONFIG.image_token_id] * num_image_tokens(grid), 13, *text]])
        positions = mrope_positions(ids[0], [grid], CONFIG)[0][:, None]
        segments = np.ones_like(ids)
    else:
        lengths = np.array([1300, 400, 900, 200, 1000, 296]) // divide
        ids = rng.integers(20, CONFIG.text.vocab_size, (1, lengths.sum()))
        segments = np.repeat(np.arange(len(lengths)) + 1, lengths)[None]
        positions = np.broadcast_to(np.concatenate([np.arange(n) for n in lengths]), (3, *ids.shape))
    np.savez(file, ids=ids, positions=positions, segments=segments, **arrays)
    return ids.size
