"""The text tower: grouped-query attention with M-RoPE, gated MLP, pre-norm; layers stacked and scanned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from dv2_jax.model.layers import GatedMLP, Init, Linear, RMSNorm
from dv2_jax.model.model_config import TextConfig
from dv2_jax.model.rope import Turn, mrope_turn, rotate

# (q [B T H hd], k [B T K hd], v [B T K hd], the layer's cache) -> (output [B T H hd], the layer's new cache).
# Queries and keys are already turned. Train, prefill and decode differ in nothing but this function.
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]

# Up to this many layers the scan is unrolled: a rolled scan's backward pass costs a CPU a fifth of its time,
# an unrolled one costs every backend compile time.
UNROLL_LAYERS = 8


def unroll_of(layers: int) -> int | bool:
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
        self, x: Float[Array, "B T D"], turn: Turn, attend: Attend, cache: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        q, k, v = self.attention_norm.into(x, self.q, self.k, self.v)
        out, cache = attend(rotate(q, turn), rotate(k, turn), v, cache)
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
        self, x: Float[Array, "B T D"], positions: Int[Array, "3 B T"], attend: Attend, cache: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        config = self.config
        turn = mrope_turn(positions, head_dim=config.head_dim, theta=config.rope_theta, sections=config.mrope_section)
        graph, stacked = nnx.split(self.layers)

        def body(x, layer):
            params, cache = layer
            return nnx.merge(graph, params)(x, turn, attend, cache)

        if self.remat:
            body = jax.checkpoint(body)
        if isinstance(cache, list):
            # One cache per layer instead of stacked ones: a step of a decoding loop then copies none of them.
            fresh = []
            for index, layer_cache in enumerate(cache):
                x, layer_cache = body(x, (jax.tree.map(lambda leaf, i=index: leaf[i], stacked), layer_cache))
                fresh.append(layer_cache)
            return self.norm(x), fresh
        x, cache = jax.lax.scan(
            body, x, (stacked, cache), length=config.num_layers, unroll=unroll_of(config.num_layers)
        )
        return self.norm(x), cache
