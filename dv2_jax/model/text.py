"""The text tower: grouped-query attention with M-RoPE, gated MLP, pre-norm; layers stacked and scanned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from dv2_jax.model.layers import GatedMLP, Init, Linear, RMSNorm
from dv2_jax.model.model_config import TextConfig
from dv2_jax.model.rope import mrope_cos_sin
from dv2_jax.ops.rotary import RotaryEmbedding, apply_rope
from dv2_jax.ops.scan_layers import scan_layers

# (q [B T H hd], k [B T K hd], v [B T K hd], the layer's cache) -> (output [B T H hd], the layer's new cache).
# RoPE is already applied to queries and keys. Training, prefill and decode differ only in this function.
AttentionFn = Callable[[Array, Array, Array, Any], tuple[Array, Any]]


class TextLayer(nnx.Module):
    def __init__(self, init: Init, config: TextConfig):
        width, dim = config.hidden_size, config.head_dim
        residual_scale = (2 * config.num_layers) ** -0.5
        self.attention_norm = RMSNorm(init, width, config.rms_norm_eps)
        self.q = Linear(init, (width,), (config.num_heads, dim), ("embed", "heads", "head_dim"), bias=True)
        self.k = Linear(init, (width,), (config.num_kv_heads, dim), ("embed", "kv_heads", "head_dim"), bias=True)
        self.v = Linear(init, (width,), (config.num_kv_heads, dim), ("embed", "kv_heads", "head_dim"), bias=True)
        self.o = Linear(init, (config.num_heads, dim), (width,), ("heads", "head_dim", "embed"), scale=residual_scale)
        self.mlp_norm = RMSNorm(init, width, config.rms_norm_eps)
        self.mlp = GatedMLP(
            init, width, config.intermediate_size, ("embed", "mlp"), bias=False, residual_scale=residual_scale
        )

    def __call__(
        self, x: Float[Array, "B T D"], rope: RotaryEmbedding, attend: AttentionFn, cache: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        q, k, v = self.attention_norm.project(x, self.q, self.k, self.v)
        out, cache = attend(apply_rope(q, rope), apply_rope(k, rope), v, cache)
        x = x + self.o(out)
        return x + self.mlp(x, self.mlp_norm), cache


class TextTower(nnx.Module):
    def __init__(self, init: Init, config: TextConfig):
        self.config, self.layer_remat = config, init.layer_remat
        self.embedding = init.param((config.vocab_size, config.hidden_size), ("vocab", "embed"), std=0.02)
        self.layers = TextLayer(init.stacked(config.num_layers), config)
        self.norm = RMSNorm(init, config.hidden_size, config.rms_norm_eps)
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

        def layer(params, x, layer_cache):
            return nnx.merge(graph, params)(x, rope, attend, layer_cache)

        x, cache = scan_layers(layer, stacked, x, cache, tower_layers=config.num_layers, layer_remat=self.layer_remat)
        return self.norm(x), cache
