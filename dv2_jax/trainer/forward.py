"""The forward pass over a packed batch, shared by the SFT loss, the RL loss and the log-prob function."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from dv2_jax.data.packing import PackedBatch
from dv2_jax.model.params import GraphDef, Params, merge
from dv2_jax.ops.attention import causal_segment_attention
from dv2_jax.ops.logprobs import row_logprobs
from dv2_jax.parallel.mesh import (
    all_gather_weight_for_loop,
    batch_axes,
    constrain_batch,
    context_parallel_size,
    data_parallel_size,
    fold_context_into_batch,
)

LOGIT_CHUNK = 512  # tokens per device whose logits are materialized at once: 0.3 GB in fp32 at V = 152,064


def token_logprobs(
    graphdef: GraphDef,
    params: Params,
    batch: PackedBatch,
    *,
    temperature: float = 1.0,
    forbidden: Bool[Array | np.ndarray, " V"] | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Compute the log-probability of `batch.targets` and the entropy at every position, in fp32.

    Values at padding positions are arbitrary. `temperature` and `forbidden` must be those of the sampler, so that
    both compute the same distribution.
    """
    model = merge(graphdef, params)
    rows, tokens = batch.token_ids.shape
    groups = jax.tree.leaves(batch.vision)[0].shape[0]

    def embed(vision, token_ids, image_index):
        return model.embed(token_ids, model.encode_images(vision), image_index)

    def by_group(x):
        return x.reshape(groups, rows // groups, tokens)

    if not batch.vision.patches.size:
        embeds = model.embed(batch.token_ids)
    elif groups == 1:
        embeds = embed(jax.tree.map(lambda x: x[0], batch.vision), batch.token_ids, batch.image_index)
    else:
        embed_groups = jax.vmap(embed, spmd_axis_name=batch_axes())  # keeps images on the data shard of their rows
        embeds = embed_groups(batch.vision, by_group(batch.token_ids), by_group(batch.image_index))
        embeds = embeds.reshape(rows, tokens, -1)

    def attend(q, k, v, layer_cache):
        return causal_segment_attention(q, k, v, batch.segment_ids), layer_cache

    hidden, _ = model.hidden(constrain_batch(embeds), batch.positions, attend)
    head = model.head_kernel().astype(hidden.dtype)
    logprobs, entropy = row_logprobs(
        *all_gather_weight_for_loop(fold_context_into_batch(constrain_batch(hidden)), head, "embed", "vocab"),
        fold_context_into_batch(batch.targets),
        temperature=temperature,
        forbidden=forbidden,
        chunk=LOGIT_CHUNK * data_parallel_size() * context_parallel_size(),
    )
    return logprobs.reshape(rows, tokens), entropy.reshape(rows, tokens)
