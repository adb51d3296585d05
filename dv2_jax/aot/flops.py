"""Model FLOPs: the numerator of model FLOPs utilization, MFU (Chowdhery et al., arXiv:2204.02311, appendix B).

Rematerialization and pairs of tokens that a causal mask excludes are not counted.
"""

from __future__ import annotations

from collections.abc import Collection

from dv2_jax.model.model_config import ModelConfig, TextConfig, VisionConfig


def text_flops(config: TextConfig, *, rows: int, tokens: int, cached: int = 0, logits: int | None = None) -> float:
    """Returns the FLOPs of a forward pass over `rows` rows of `tokens` tokens, each after `cached` tokens.

    Logits are computed for `logits` tokens of every row (default: all).
    """
    width, dim = config.hidden_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    layer = 2 * width * queries + 2 * width * keys + 3 * width * config.intermediate_size  # parameters in matmuls
    pairs = tokens * cached + tokens * (tokens + 1) / 2  # of query and key: two multiply-adds per query dimension
    head = width * config.vocab_size * (tokens if logits is None else logits)
    return rows * (2.0 * (tokens * config.num_layers * layer + head) + config.num_layers * 4.0 * queries * pairs)


def vision_flops(config: VisionConfig, *, rows: int, length: int) -> float:
    """Returns the FLOPs of the vision tower's forward pass over `rows` images of `length` patches each."""
    width, full = config.hidden_size, len(config.fullatt_block_indexes)
    block = 4 * width**2 + 3 * width * config.intermediate_size
    keys = full * length + (config.depth - full) * min(length, config.window_patches)
    embed = config.patch_dim // config.temporal_patch_size * width
    return rows * length * (2.0 * (config.depth * block + embed) + 4.0 * width * keys)


def projector_flops(config: VisionConfig, *, patches: int) -> float:
    """Returns the FLOPs of the patch merger's forward pass."""
    unit = config.spatial_merge_size**2
    merged_hidden = config.hidden_size * unit
    return 2.0 * patches / unit * (merged_hidden**2 + merged_hidden * config.out_hidden_size)


def forward_flops(config: ModelConfig, *, rows: int, tokens: int, images: tuple[int, int] = (0, 0)) -> float:
    """Returns the FLOPs of a forward pass over `rows` trajectories of `tokens` tokens with `images` (count, patches)."""
    count, length = images
    vision = vision_flops(config.vision, rows=count, length=length)
    projector = projector_flops(config.vision, patches=count * length)
    return vision + projector + text_flops(config.text, rows=rows, tokens=tokens)


def training_flops(
    config: ModelConfig,
    *,
    rows: int,
    tokens: int,
    images: tuple[int, int] = (0, 0),
    freeze: Collection[str] = (),
) -> float:
    """Returns the FLOPs of the forward and backward pass of the batch of `forward_flops`.

    The backward pass costs one forward pass for the gradients of the weights and one for those of the inputs. For frozen
    parts ("vision", "projector", "text") the former is not needed, and the latter only if an earlier part is trained.
    """
    count, length = images
    vision = vision_flops(config.vision, rows=count, length=length)
    projector = projector_flops(config.vision, patches=count * length)
    trained = {part: part not in freeze for part in ("vision", "projector", "text")}
    return (
        vision * (1 + 2 * trained["vision"])
        + projector * (1 + trained["vision"] + trained["projector"])
        + text_flops(config.text, rows=rows, tokens=tokens) * (2 + trained["text"])
    )
