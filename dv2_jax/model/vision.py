"""Vision tower: turns patches into one embedding per 2x2 patches.

Patches are packed into rows of fixed length; a row holds one large image or several small ones, separated by segment
ids. Blocks attend within segments of a row. For the full-attention blocks a segment is an image; for the others it is
a window, and the patches are permuted into rows of one window's length. No block costs the square of all patches, and
both kinds share one attention implementation.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dv2_jax.model.layers import GatedMLP, Init, Linear, RMSNorm
from dv2_jax.model.model_config import VisionConfig
from dv2_jax.model.rope import vision_cos_sin
from dv2_jax.model.vision_inputs import VisionBatch
from dv2_jax.ops.attention import segment_attention
from dv2_jax.ops.dense import gelu_linear
from dv2_jax.ops.permute_rows import permute_rows
from dv2_jax.ops.rotary import RotaryEmbedding, apply_rope
from dv2_jax.ops.scan_layers import scan_layers, scan_unroll
from dv2_jax.parallel.mesh import constrain_patches, context_parallel_size, replicate_patches

NORM_EPS = 1e-6  # as published, independent of the text tower's rms_norm_eps


class VisionBlock(nnx.Module):
    def __init__(self, init: Init, config: VisionConfig):
        width, heads, dim = config.hidden_size, config.num_heads, config.head_dim
        residual_scale = (2 * config.depth) ** -0.5
        in_axes = ("vision_embed", "vision_heads", "head_dim")
        out_axes = ("vision_heads", "head_dim", "vision_embed")
        self.attention_norm = RMSNorm(init, width, NORM_EPS)
        self.q = Linear(init, (width,), (heads, dim), in_axes, bias=True)
        self.k = Linear(init, (width,), (heads, dim), in_axes, bias=True)
        self.v = Linear(init, (width,), (heads, dim), in_axes, bias=True)
        self.o = Linear(init, (heads, dim), (width,), out_axes, bias=True, scale=residual_scale)
        self.mlp_norm = RMSNorm(init, width, NORM_EPS)
        self.mlp = GatedMLP(
            init,
            width,
            config.intermediate_size,
            ("vision_embed", "vision_mlp"),
            bias=True,
            residual_scale=residual_scale,
        )

    def __call__(
        self, x: Float[Array, "R P C"], rope: RotaryEmbedding, segments: Int[Array, "R P"]
    ) -> Float[Array, "R P C"]:
        q, k, v = self.attention_norm.project(x, self.q, self.k, self.v)
        x = x + self.o(segment_attention(apply_rope(q, rope), apply_rope(k, rope), v, segments))
        return x + self.mlp(x, self.mlp_norm)


class VisionTower(nnx.Module):
    def __init__(self, init: Init, config: VisionConfig):
        self.config, self.layer_remat = config, init.layer_remat
        self.patch_embed = Linear(init, (config.patch_dim,), (config.hidden_size,), ("patch", "vision_embed"))
        self.blocks = VisionBlock(init.stacked(config.depth), config)

    def __call__(self, batch: VisionBatch, dtype: jnp.dtype) -> Float[Array, "P C"]:
        """Returns the hidden states of all patches in row order; see `VisionBatch` for the order within a row."""
        config = self.config
        patches = batch.patches.astype(dtype)
        x = self._embed(constrain_patches(patches) if context_parallel_size() > 1 else patches)
        rope = vision_cos_sin(batch.coordinates, head_dim=config.head_dim)
        full = [i in config.fullatt_block_indexes for i in range(config.depth)]
        graph, stacked = nnx.split(self.blocks)

        def period(x, stacked):
            for is_full, blocks in itertools.groupby(range(len(jax.tree.leaves(stacked)[0])), full.__getitem__):
                blocks = list(blocks)
                run = jax.tree.map(lambda w, at=slice(blocks[0], blocks[-1] + 1): w[at], stacked)
                if is_full:
                    x = self._scan(graph, run, x, rope, batch.image_segments)
                elif batch.window_index is None:
                    x = self._scan(graph, run, x, rope, batch.window_segments)
                else:
                    x = self._scan_in_windows(graph, run, x, batch)
            return x, None

        periods = config.depth // _block_pattern_period(full)
        stacked = jax.tree.map(lambda w: w.reshape(periods, -1, *w.shape[1:]), stacked)
        x, _ = jax.lax.scan(period, x, stacked, unroll=scan_unroll(config.depth))
        return constrain_patches(x).reshape(-1, config.hidden_size)

    def _embed(self, patches: Float[Array, "R P half"]) -> Float[Array, "R P C"]:
        # The temporal frames of a still image are equal: the batch carries one, and the kernel is summed over frames.
        config = self.config
        kernel = self.patch_embed.kernel[...].reshape(
            config.in_channels, config.temporal_patch_size, config.patch_size**2, config.hidden_size
        )
        kernel = kernel.sum(axis=1).reshape(-1, config.hidden_size)
        return patches @ kernel.astype(patches.dtype)

    def _scan(
        self,
        graph: nnx.GraphDef,
        stacked: nnx.State,
        x: Float[Array, "R P C"],
        rope: RotaryEmbedding,
        segments: Int[Array, "R P"],
    ) -> Float[Array, "R P C"]:
        """Applies successive blocks of one kind."""

        def block(params, x, _):
            return nnx.merge(graph, params)(constrain_patches(x), rope, segments), None

        return scan_layers(block, stacked, x, tower_layers=self.config.depth, layer_remat=self.layer_remat)[0]

    def _scan_in_windows(
        self, graph: nnx.GraphDef, stacked: nnx.State, x: Float[Array, "R P C"], batch: VisionBatch
    ) -> Float[Array, "R P C"]:
        """Applies successive windowed blocks to the patches permuted into rows of one window's length."""
        flat = replicate_patches(x.reshape(-1, x.shape[-1]))
        flat = permute_rows(flat, batch.window_index.reshape(-1), batch.window_index_inv)
        coordinates = jnp.take(batch.coordinates.reshape(-1, 2), batch.window_index, axis=0, mode="fill", fill_value=0)
        rope = vision_cos_sin(coordinates, head_dim=self.config.head_dim)
        windows = flat.reshape(*batch.window_segments.shape, -1)
        windows = self._scan(graph, stacked, windows, rope, batch.window_segments)
        flat = replicate_patches(windows.reshape(-1, windows.shape[-1]))
        return permute_rows(flat, batch.window_index_inv, batch.window_index.reshape(-1)).reshape(x.shape)


def _block_pattern_period(pattern: list[bool]) -> int:
    """Returns the smallest period of the windowed/full block pattern.

    The published towers repeat seven windowed blocks and a full one four times; scanning over periods compiles them
    once.
    """
    size = len(pattern)
    return next(n for n in range(1, size + 1) if size % n == 0 and pattern == pattern[:n] * (size // n))


class PatchMerger(nnx.Module):
    """Merges the four patches of a 2x2 unit, normalized one by one, into one token of the text tower."""

    def __init__(self, init: Init, config: VisionConfig):
        merged_hidden = config.hidden_size * config.spatial_merge_size**2
        self.layer_remat = init.layer_remat
        self.norm = RMSNorm(init, config.hidden_size, NORM_EPS)
        self.hidden = Linear(init, (merged_hidden,), (merged_hidden,), ("merged", "merged_mlp"), bias=True)
        self.out = Linear(init, (merged_hidden,), (config.out_hidden_size,), ("merged_mlp", "embed"), bias=True)

    def __call__(self, x: Float[Array, "P C"]) -> Float[Array, "M D"]:
        x = self.norm(constrain_patches(x))
        hidden = self.hidden(x.reshape(-1, self.hidden.inputs[0]))
        return gelu_linear(hidden, self.out.weights, layer_remat=self.layer_remat)
