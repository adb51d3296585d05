"""The trainer's forward pass over a packed batch: what SFT, RL and the log-prob check share."""

from __future__ import annotations

import jax
from jaxtyping import Array, Bool, Float

from dv2_jax.data.packing import PackedBatch
from dv2_jax.model.params import GraphDef, merge
from dv2_jax.ops.attention import causal_segment_attention
from dv2_jax.ops.logprobs import chunked_logprobs


def token_logprobs(
    graphdef: GraphDef,
    params: dict[str, Array],
    batch: PackedBatch,
    *,
    temperature: float = 1.0,
    forbidden: Bool[Array, " V"] | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of `batch.targets` at every position and the entropy there (fp32; padding is meaningless).

    Temperature and `forbidden` are those of the sampler, so that both speak of the same distribution.
    """
    model = merge(graphdef, params)
    rows, tokens = batch.token_ids.shape
    groups = jax.tree.leaves(batch.vision)[0].shape[0]

    def embed(vision, token_ids, image_index):
        return model.embed(token_ids, model.encode_images(vision), image_index)

    def by_group(x):
        return x.reshape(groups, rows // groups, tokens)

    if groups == 1:
        embeds = embed(jax.tree.map(lambda x: x[0], batch.vision), batch.token_ids, batch.image_index)
    else:
        embeds = jax.vmap(embed)(batch.vision, by_group(batch.token_ids), by_group(batch.image_index))
        embeds = embeds.reshape(rows, tokens, -1)

    def attend(q, k, v, layer_cache):
        return causal_segment_attention(q, k, v, batch.segment_ids), layer_cache

    hidden, _ = model.hidden(embeds, batch.positions, attend)
    logprobs, entropy = chunked_logprobs(
        hidden.reshape(rows * tokens, -1),
        model.head_kernel(),
        batch.targets.reshape(-1),
        temperature=temperature,
        forbidden=forbidden,
    )
    return logprobs.reshape(rows, tokens), entropy.reshape(rows, tokens)
