"""The trainer's forward pass over a packed batch: what SFT, RL and the log-prob check share."""

from __future__ import annotations

import jax
from jaxtyping import Array, Bool, Float

from dv2_jax.data.packing import PackedBatch
from dv2_jax.model.params import GraphDef, merge
from dv2_jax.ops.attention import causal_segment_attention
from dv2_jax.ops.logprobs import row_logprobs
from dv2_jax.parallel.mesh import context_shards, gathered_beside, row_axes, row_shards, rows_by_context, split_rows

CHUNK = 512  # tokens per device whose logits exist at once: 0.3 GB of them where V is 152,064


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

    if not batch.vision.patches.size:
        embeds = model.embed(batch.token_ids)
    elif groups == 1:
        embeds = embed(jax.tree.map(lambda x: x[0], batch.vision), batch.token_ids, batch.image_index)
    else:
        embed_groups = jax.vmap(embed, spmd_axis_name=row_axes())  # a group's pictures stay with its rows' device
        embeds = embed_groups(batch.vision, by_group(batch.token_ids), by_group(batch.image_index))
        embeds = embeds.reshape(rows, tokens, -1)

    def attend(q, k, v, layer_cache):
        return causal_segment_attention(q, k, v, batch.segment_ids), layer_cache

    hidden, _ = model.hidden(split_rows(embeds), batch.positions, attend)
    head = model.head_kernel().astype(hidden.dtype)
    logprobs, entropy = row_logprobs(
        *gathered_beside(rows_by_context(split_rows(hidden)), head, "embed", "vocab"),
        rows_by_context(batch.targets),
        temperature=temperature,
        forbidden=forbidden,
        chunk=CHUNK * row_shards() * context_shards(),
    )
    return logprobs.reshape(rows, tokens), entropy.reshape(rows, tokens)
