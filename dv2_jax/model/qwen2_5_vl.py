"""Qwen2.5-VL in Flax NNX: one forward pass for training, prefill and decode."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dv2_jax.model.layers import Init
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.text import AttentionFn, TextTower
from dv2_jax.model.vision import PatchMerger, VisionTower
from dv2_jax.model.vision_inputs import VisionBatch
from dv2_jax.ops.permute_rows import permute_rows


class Qwen2_5_VL(nnx.Module):
    """Qwen2.5-VL. Parameter names start with `vision.`, `projector.` or `text.`, the names that `model.freeze` takes."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        param_dtype: jnp.dtype = jnp.float32,
        compute_dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
    ):
        init = Init(rngs, jnp.dtype(param_dtype), layer_remat=remat)
        self.config = config
        self.compute_dtype = jnp.dtype(compute_dtype)
        self.vision = VisionTower(init, config.vision)
        self.projector = PatchMerger(init, config.vision)
        self.text = TextTower(init, config.text)

    def encode_images(self, vision: VisionBatch) -> Float[Array, "M D"]:
        """Returns image embeddings in placeholder order, image after image; rows beyond the last image are zero."""
        merged = self.projector(self.vision(vision, self.compute_dtype))
        return permute_rows(merged, vision.merge_index, vision.merge_index_inv)

    def embed(
        self,
        token_ids: Int[Array, "B T"],
        image_embeds: Float[Array, "M D"] | None = None,
        image_index: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns token embeddings; where `image_index` is not -1, that row of `image_embeds` instead."""
        text = self.text.embedding[...].astype(self.compute_dtype)[token_ids]
        if image_embeds is None or image_index is None:
            return text
        images = image_embeds.astype(self.compute_dtype)[jnp.maximum(image_index, 0)]
        return jnp.where((image_index >= 0)[..., None], images, text)

    def hidden(
        self, embeds: Float[Array, "B T D"], positions: Int[Array, "3 B T"], attend: AttentionFn, cache: Any = None
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Returns the hidden states after the final norm, and the new cache.

        `cache` is a pytree with a leading layer dimension, or a list with one entry per layer; `attend` takes and
        returns one layer's part.
        """
        return self.text(embeds, positions, attend, cache)

    def head_kernel(self) -> Float[Array, "D V"]:
        """Returns the vocabulary projection; the transposed embedding if weights are tied."""
        return self.text.embedding[...].T if self.text.head is None else self.text.head.kernel[...]

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Returns fp32 logits of every hidden state; for many tokens use `ops.logprobs.chunked_logprobs`."""
        return jnp.matmul(hidden, self.head_kernel().astype(hidden.dtype), preferred_element_type=jnp.float32)
