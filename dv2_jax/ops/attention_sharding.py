"""Attention device by device: no head and no row needs another one."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from dv2_jax.config import ConfigError
from dv2_jax.parallel.mesh import CONTEXT, ROWS, context_shards, row_axes


def on_own_rows_and_heads(
    attend: Callable[[Array, Array, Array, Array], Array],
    q: Float[Array, "B T H hd"],
    k: Float[Array, "B T K hd"],
    v: Float[Array, "B T K hd"],
    segment_ids: Int[Array, "B T"],
    *,
    causal: bool,
) -> Float[Array, "B T H hd"]:
    """`attend(q, k, v, segment_ids)` with, under a mesh, each device's own rows and heads.

    Left to itself the compiler gathers all rows to every device, for it cannot split a kernel nor a loop over tiles.
    Rows of pictures are not split over ``ROWS`` here: their batch is by an outer ``vmap(..., spmd_axis_name=ROWS)``.
    With ``context``, tokens are exchanged for heads before and back after, unless it splits whole rows of pictures.
    Raises ConfigError where there are too few heads for that.
    """
    if row_axes() is None:
        return attend(q, k, v, segment_ids)
    with jax.named_scope("causal_attention" if causal else "segment_attention"):  # parallel.hlo tells them apart by it
        if context_shards() > 1:
            return _with_context(attend, q, k, v, segment_ids, causal=causal)
        rows = ROWS if causal else None
        heads = PartitionSpec(rows, None, "tensor", None)
        places = (heads, heads, heads, PartitionSpec(rows, None))
        return jax.shard_map(attend, in_specs=places, out_specs=heads, check_vma=False)(q, k, v, segment_ids)


def _with_context(attend, q, k, v, segment_ids, *, causal):
    rows = ROWS if causal else None
    if not causal and q.shape[0] % context_shards() == 0:
        rows = CONTEXT
        split = whole = PartitionSpec(rows, None, "tensor", None)
    else:
        _check_heads(k.shape[2])
        split = PartitionSpec(rows, CONTEXT, "tensor", None)
        whole = PartitionSpec(rows, None, ("tensor", CONTEXT), None)
    # What has equally many heads is exchanged together: devices wait for each other once.
    operands = [jnp.concatenate([q, k, v], -1)] if q.shape == k.shape else [q, jnp.concatenate([k, v], -1)]
    operands = [jax.lax.with_sharding_constraint(x, split) for x in operands]

    def local(segment_ids, *operands):
        pieces = [piece for x in operands for piece in jnp.split(x, x.shape[-1] // q.shape[-1], axis=-1)]
        return attend(*pieces, segment_ids)

    places = (PartitionSpec(rows, None), *(whole for _ in operands))
    out = jax.shard_map(local, in_specs=places, out_specs=whole, check_vma=False)(segment_ids, *operands)
    # Left to itself the compiler splits what comes after by features.
    return jax.lax.with_sharding_constraint(out, split)


def _check_heads(heads: int) -> None:
    mesh = jax.sharding.get_abstract_mesh()
    if heads % (mesh.shape["tensor"] * context_shards()):
        raise ConfigError(
            f"mesh.tensor={mesh.shape['tensor']} times mesh.context={context_shards()} does not divide {heads} heads of"
            " keys, by which attention is split; choose smaller ones"
        )
