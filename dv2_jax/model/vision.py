"""The vision tower: patches in, one merged embedding per 2x2 patches out.

Patches stand in rows of fixed length; a row holds one large picture or several small ones, told apart by
segment ids. A block attends within segments of a row and does not know what a segment is: for the few
full-attention blocks it is a picture, for the others a window, with the patches moved to rows of one window's
length. So no block costs the square of all patches, and there is one attention code for both.
"""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dv2_jax.model.layers import GatedMLP, Init, Linear, RMSNorm, products_of
from dv2_jax.model.model_config import VisionConfig
from dv2_jax.model.rope import Turn, patch_turn, rotate
from dv2_jax.model.text import unroll_of
from dv2_jax.model.vision_inputs import VisionBatch
from dv2_jax.ops.attention import segment_attention
from dv2_jax.ops.permute_rows import move_rows
from dv2_jax.parallel.mesh import context_shards, split_patches, whole_patches

NORM_EPS = 1e-6  # fixed in the published tower, whatever the text tower's is


class VisionBlock(nnx.Module):
    def __init__(self, init: Init, config: VisionConfig, *, remat: bool):
        width, heads, dim = config.hidden_size, config.num_heads, config.head_dim
        residual_scale = (2 * config.depth) ** -0.5
        into, out = ("vision_embed", "vision_heads", "head_dim"), ("vision_heads", "head_dim", "vision_embed")
        self.attention_norm = RMSNorm(init, width, NORM_EPS, remat=remat)
        self.q = Linear(init, (width,), (heads, dim), into, bias=True)
        self.k = Linear(init, (width,), (heads, dim), into, bias=True)
        self.v = Linear(init, (width,), (heads, dim), into, bias=True)
        self.o = Linear(init, (heads, dim), (width,), out, bias=True, scale=residual_scale)
        self.mlp_norm = RMSNorm(init, width, NORM_EPS, remat=remat)
        self.mlp = GatedMLP(
            init,
            width,
            config.intermediate_size,
            ("vision_embed", "vision_mlp"),
            bias=True,
            residual_scale=residual_scale,
            remat=remat,
        )

    def __call__(self, x: Float[Array, "R P C"], turn: Turn, segments: Int[Array, "R P"]) -> Float[Array, "R P C"]:
        q, k, v = self.attention_norm.into(x, self.q, self.k, self.v)
        x = x + self.o(segment_attention(rotate(q, turn), rotate(k, turn), v, segments))
        return x + self.mlp(x, self.mlp_norm)


class VisionTower(nnx.Module):
    def __init__(self, init: Init, config: VisionConfig, *, remat: bool):
        self.config, self.remat = config, remat
        self.patch_embed = Linear(init, (config.patch_dim,), (config.hidden_size,), ("patch", "vision_embed"))
        self.blocks = VisionBlock(init.stacked(config.depth), config, remat=remat)

    def __call__(self, batch: VisionBatch, dtype: jnp.dtype) -> Float[Array, "P C"]:
        """Hidden states of all patches, row after row; see ``VisionBatch`` for the order."""
        config = self.config
        rows, length, _ = batch.patches.shape
        patches = batch.patches.astype(dtype)
        x = self._embed(split_patches(patches) if context_shards() > 1 else patches)
        whole = patch_turn(batch.coordinates, head_dim=config.head_dim)
        full = [i in config.fullatt_block_indexes for i in range(config.depth)]
        graph, stacked = nnx.split(self.blocks)

        def attend_in_windows(x, blocks):
            if batch.window_index is None:
                return self._scan(graph, blocks, x, whole, batch.window_segments)
            slots = batch.window_segments.shape
            flat = move_rows(
                whole_patches(x.reshape(rows * length, -1)), batch.window_index.reshape(-1), batch.window_inverse
            )
            coordinates = jnp.take(
                batch.coordinates.reshape(-1, 2), batch.window_index, axis=0, mode="fill", fill_value=0
            )
            turn = patch_turn(coordinates, head_dim=config.head_dim)
            windows = self._scan(graph, blocks, flat.reshape(*slots, -1), turn, batch.window_segments)
            flat = whole_patches(windows.reshape(slots[0] * slots[1], -1))
            return move_rows(flat, batch.window_inverse, batch.window_index.reshape(-1)).reshape(rows, length, -1)

        def period(x, stacked):
            for is_full, blocks in itertools.groupby(range(len(jax.tree.leaves(stacked)[0])), full.__getitem__):
                blocks = list(blocks)
                run = jax.tree.map(lambda w, at=slice(blocks[0], blocks[-1] + 1): w[at], stacked)
                if is_full:
                    x = self._scan(graph, run, x, whole, batch.picture_segments)
                else:
                    x = attend_in_windows(x, run)
            return x, None

        periods = config.depth // _period(full)
        stacked = jax.tree.map(lambda w: w.reshape(periods, -1, *w.shape[1:]), stacked)
        x, _ = jax.lax.scan(period, x, stacked, unroll=unroll_of(config.depth))
        return split_patches(x).reshape(rows * length, -1)

    def _embed(self, patches: Float[Array, "R P half"]) -> Float[Array, "R P C"]:
        # A still picture's frames are equal, so the batch carries one of them and the kernel's frames are summed.
        config = self.config
        kernel = self.patch_embed.kernel[...].reshape(
            config.in_channels, config.temporal_patch_size, config.patch_size**2, config.hidden_size
        )
        kernel = kernel.sum(axis=1).reshape(-1, config.hidden_size)
        return patches @ kernel.astype(patches.dtype)

    def _scan(self, graph: nnx.GraphDef, stacked: nnx.State, x: Array, turn: Turn, segments: Array) -> Array:
        def body(x, params):
            return nnx.merge(graph, params)(split_patches(x), turn, segments), None

        if self.remat:
            body = jax.checkpoint(body)
        return jax.lax.scan(body, x, stacked, unroll=unroll_of(self.config.depth))[0]


def _period(pattern: list[bool]) -> int:
    """After how many blocks the pattern begins again: the published towers repeat seven windowed blocks and a full
    one four times, and a compiler need see them once."""
    size = len(pattern)
    return next(n for n in range(1, size + 1) if size % n == 0 and pattern == pattern[:n] * (size // n))


class Projector(nnx.Module):
    """Four patches of a 2x2 square, normalized one by one, become one token of the text tower."""

    def __init__(self, init: Init, config: VisionConfig, *, remat: bool):
        merged = config.hidden_size * config.spatial_merge_size**2
        self.remat = remat
        self.norm = RMSNorm(init, config.hidden_size, NORM_EPS, remat=remat)
        self.hidden = Linear(init, (merged,), (merged,), ("merged", "merged_mlp"), bias=True)
        self.out = Linear(init, (merged,), (config.out_hidden_size,), ("merged_mlp", "embed"), bias=True)

    def __call__(self, x: Float[Array, "P C"]) -> Float[Array, "M D"]:
        x = self.norm(split_patches(x))
        x = x.reshape(-1, self.hidden.inputs[0])
        hidden, gelu = self.hidden(x), partial(jax.nn.gelu, approximate=False)
        if self.remat:
            return self.out(gelu(hidden))
        [merged] = products_of(gelu, (hidden,), [self.out])
        return merged
