"""The text tower: grouped-query attention with M-RoPE, gated MLP, pre-norm; layers stacked and scanned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from dv2_jax.model.layers import GatedMLP, Init, Linear, RMSNorm
from dv2_jax.model.model_config import TextConfig
from dv2_jax.model.rope import RotaryEmbedding, apply_rope, mrope_cos_sin

# (q [B T H hd], k [B T K hd], v [B T K hd], the layer's cache) -> (output [B T H hd], the layer's new cache).
# RoPE is already applied to queries and keys. Training, prefill and decode differ only in this function.
AttentionFn = Callable[[Array, Array, Array, Any], tuple[Array, Any]]

# Scans of up to this many layers are unrolled. A rolled scan adds a fifth to the backward pass on CPU; an unrolled one
# costs compile time on every backend.
UNROLL_LAYERS = 8


def scan_unroll(layers: int) -> int | bool:
    """Returns the `unroll` argument of `jax.lax.scan` for a tower of this many layers."""
    return True if layers <= UNROLL_LAYERS else 1


class TextLayer(nnx.Module):
    def __init__(self, init: Init, config: TextConfig, *, remat: bool):
        width, dim = config.hidden_size, config.head_dim
        residual_scale = (2 * config.num_layers) ** -0.5
        self.attention_norm = RMSNorm(init, width, config.rms_norm_eps, remat=remat)
        self.q = Linear(init, (width,), (config.num_heads, dim), ("embed", "heads", "head_dim"), bias=True)
        self.k = Linear(init, (width,), (config.num_kv_heads, dim), ("embed", "kv_heads", "head_dim"), bias=True)
        self.v = Linear(init, (width,), (config.num_kv_heads, dim), ("embed", "kv_heads", "head_dim"), bias=True)
        self.o = Linear(init, (config.num_heads, dim), (width,), ("heads", "head_dim", "embed"), scale=residual_scale)
        self.mlp_norm = RMSNorm(init, width, config.rms_norm_eps, remat=remat)
        self.mlp = GatedMLP(
            init,
            width,
            config.intermediate_size,
            ("embed", "mlp"),
            bias=False,
            residual_scale=residual_scale,
            remat=remat,
        )

    def __call__(
        self, x: Float[Array, "B T D"], rope: RotaryEmbedding, attend: AttentionFn, cache: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        q, k, v = self.attention_norm.project(x, self.q, self.k, self.v)
        out, cache = attend(apply_rope(q, rope), apply_rope(k, rope), v, cache)
        x = x + self.o(out)
        return x + self.mlp(x, self.mlp_norm), cache


class TextTower(nnx.Module):
    def __init__(self, init: Init, config: TextConfig, *, remat: bool):
        self.config, self.remat = config, remat
        self.embedding = init.param((config.vocab_size, config.hidden_size), ("vocab", "embed"), std=0.02)
        self.layers = TextLayer(init.stacked(config.num_layers), config, remat=remat)
        self.norm = RMSNorm(init, config.hidden_size, config.rms_norm_eps, remat=remat)
        self.head = (
            None
            if config.tie_word_embeddings
            else Linear(init, (config.hidden_size,), (config.vocab_size,), ("embed", "vocab"))
        )

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "3 B T"], attend: AttentionFn, cache: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        config = self.config
        rope = mrope_cos_sin(
            positions, head_dim=config.head_dim, theta=config.rope_theta, sections=config.mrope_section
        )
        graph, stacked = nnx.split(self.layers)

        def body(x, layer):
            params, cache = layer
            return nnx.merge(graph, params)(x, rope, attend, cache)

        if self.remat:
            body = jax.checkpoint(body)
        if isinstance(cache, list):
            # One cache per layer instead of a stacked one: a scan would copy every layer's cache in each decode step.
            new_cache = []
            for index, layer_cache in enumerate(cache):
                x, layer_cache = body(x, (jax.tree.map(lambda leaf, i=index: leaf[i], stacked), layer_cache))
                new_cache.append(layer_cache)
            return self.norm(x), new_cache
        x, cache = jax.lax.scan(
            body, x, (stacked, cache), length=config.num_layers, unroll=scan_unroll(config.num_layers)
        )
        return self.norm(x), cache
