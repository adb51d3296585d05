"""Attention device by device: no head and no row needs another one."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from dv2_jax.parallel.mesh import ROWS, row_axes


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
    Rows of pictures are not split here: their batch is split by an outer ``vmap(..., spmd_axis_name=ROWS)``.
    """
    if row_axes() is None:
        return attend(q, k, v, segment_ids)
    rows = ROWS if causal else None
    heads = PartitionSpec(rows, None, "tensor", None)
    local = jax.shard_map(
        attend, in_specs=(heads, heads, heads, PartitionSpec(rows, None)), out_specs=heads, check_vma=False
    )
    with jax.named_scope("causal_attention" if causal else "segment_attention"):  # parallel.hlo tells them apart by it
        return local(q, k, v, segment_ids)
