"""Shards attention by rows and heads, and exchanges tokens for heads under context parallelism (Ulysses)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from dv2_jax.config import ConfigError
from dv2_jax.parallel.mesh import BATCH_AXES, CONTEXT, batch_axes, context_parallel_size


def shard_attention(
    attend: Callable[[Array, Array, Array, Array], Array],
    q: Float[Array, "B T H hd"],
    k: Float[Array, "B T K hd"],
    v: Float[Array, "B T K hd"],
    segment_ids: Int[Array, "B T"],
    *,
    causal: bool,
) -> Float[Array, "B T H hd"]:
    """Computes `attend(q, k, v, segment_ids)`; under a mesh, on each device's shard of rows and heads.

    Without `shard_map` XLA would all-gather the rows, because it can partition neither a kernel nor a loop over tiles.
    Rows of images are not sharded over `BATCH_AXES` here: an outer `vmap(..., spmd_axis_name=BATCH_AXES)` does that.
    Under context parallelism an all-to-all trades the token axis for the head axis and back (Ulysses, Jacobs et al.,
    arXiv:2309.14509), unless `context` shards the rows of images themselves.
    Raises ConfigError if there are too few heads for that.
    """
    if batch_axes() is None:
        return attend(q, k, v, segment_ids)
    with jax.named_scope(
        "causal_attention" if causal else "segment_attention"
    ):  # aot.hlo_cost distinguishes them by this scope
        if context_parallel_size() > 1:
            return _with_context(attend, q, k, v, segment_ids, causal=causal)
        rows = BATCH_AXES if causal else None
        heads = PartitionSpec(rows, None, "tensor", None)
        specs = (heads, heads, heads, PartitionSpec(rows, None))
        return jax.shard_map(attend, in_specs=specs, out_specs=heads, check_vma=False)(q, k, v, segment_ids)


def _with_context(attend, q, k, v, segment_ids, *, causal):
    rows = BATCH_AXES if causal else None
    if not causal and q.shape[0] % context_parallel_size() == 0:
        rows = CONTEXT
        by_tokens = by_heads = PartitionSpec(rows, None, "tensor", None)
    else:
        _check_heads(k.shape[2])
        by_tokens = PartitionSpec(rows, CONTEXT, "tensor", None)
        by_heads = PartitionSpec(rows, None, ("tensor", CONTEXT), None)
    # Q, K and V are exchanged in one all-to-all if they have the same number of heads, else K and V in one.
    operands = [jnp.concatenate([q, k, v], -1)] if q.shape == k.shape else [q, jnp.concatenate([k, v], -1)]
    operands = [jax.lax.with_sharding_constraint(x, by_tokens) for x in operands]

    def local(segment_ids, *operands):
        qkv = [part for x in operands for part in jnp.split(x, x.shape[-1] // q.shape[-1], axis=-1)]
        return attend(*qkv, segment_ids)

    specs = (PartitionSpec(rows, None), *(by_heads for _ in operands))
    out = jax.shard_map(local, in_specs=specs, out_specs=by_heads, check_vma=False)(segment_ids, *operands)
    # Without this constraint XLA shards the following layers by features.
    return jax.lax.with_sharding_constraint(out, by_tokens)


def _check_heads(heads: int) -> None:
    mesh = jax.sharding.get_abstract_mesh()
    if heads % (mesh.shape["tensor"] * context_parallel_size()):
        raise ConfigError(
            f"mesh.tensor={mesh.shape['tensor']} times mesh.context={context_parallel_size()} does not divide the {heads} key/value"
            " heads, by which attention is sharded; choose smaller sizes"
        )
