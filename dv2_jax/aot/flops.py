"""Operations that a model's mathematics asks for: the numerator of model FLOP utilization (Chowdhery et al.,
arXiv:2204.02311, appendix B). Recomputation does not count, nor does what a causal mask hides."""

from __future__ import annotations

from collections.abc import Collection

from dv2_jax.model.model_config import ModelConfig, TextConfig, VisionConfig


def text_flops(config: TextConfig, *, rows: int, tokens: int, cached: int = 0, logits: int | None = None) -> float:
    """Forward pass of ``rows`` rows of ``tokens`` tokens, each row behind ``cached`` ones, with the logits of ``logits``
    tokens of every row (default: all)."""
    width, dim = config.hidden_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    layer = 2 * width * queries + 2 * width * keys + 3 * width * config.intermediate_size  # parameters in products
    pairs = tokens * cached + tokens * (tokens + 1) / 2  # each: a score and a share of the values, per query dimension
    head = width * config.vocab_size * (tokens if logits is None else logits)
    return rows * (2.0 * (tokens * config.num_layers * layer + head) + config.num_layers * 4.0 * queries * pairs)


def vision_flops(config: VisionConfig, *, rows: int, length: int) -> float:
    """Forward pass of the tower over ``rows`` pictures of ``length`` patches each."""
    width, full = config.hidden_size, len(config.fullatt_block_indexes)
    block = 4 * width**2 + 3 * width * config.intermediate_size
    seen = full * length + (config.depth - full) * min(length, config.window_patches)
    embed = config.patch_dim // config.temporal_patch_size * width
    return rows * length * (2.0 * (config.depth * block + embed) + 4.0 * width * seen)


def projector_flops(config: VisionConfig, *, patches: int) -> float:
    square = config.spatial_merge_size**2
    merged = config.hidden_size * square
    return 2.0 * patches / square * (merged**2 + merged * config.out_hidden_size)


def forward_flops(config: ModelConfig, *, rows: int, tokens: int, pictures: tuple[int, int] = (0, 0)) -> float:
    """Log-probabilities of ``rows`` trajectories of ``tokens`` tokens, with `pictures` (how many, patches of each)."""
    count, length = pictures
    vision = vision_flops(config.vision, rows=count, length=length)
    projector = projector_flops(config.vision, patches=count * length)
    return vision + projector + text_flops(config.text, rows=rows, tokens=tokens)


def training_flops(
    config: ModelConfig,
    *,
    rows: int,
    tokens: int,
    pictures: tuple[int, int] = (0, 0),
    freeze: Collection[str] = (),
) -> float:
    """Forward and backward pass of what `forward_flops` describes.

    A backward pass costs as much as the forward one for the weights, and as much again for what came in; of what is
    frozen ("vision", "projector", "text") the first is not needed, and the second only if something below learns.
    """
    count, length = pictures
    vision = vision_flops(config.vision, rows=count, length=length)
    projector = projector_flops(config.vision, patches=count * length)
    learns = {part: part not in freeze for part in ("vision", "projector", "text")}
    return (
        vision * (1 + 2 * learns["vision"])
        + projector * (1 + learns["vision"] + learns["projector"])
        + text_flops(config.text, rows=rows, tokens=tokens) * (2 + learns["text"])
    )
