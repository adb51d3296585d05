"""Costs of the paged-attention kernel in a compiled program, computed from the shapes of its operands.

XLA knows nothing about a kernel. Its operands are all pages of the KV cache, of which it reads those that its list of blocks
names. The list of a compiled program is as long as its page table, so that the costs are those of rows at full width.
"""

from __future__ import annotations

from collections.abc import Sequence

from dv2_jax.aot.hlo_parser import Op, Shape
from dv2_jax.ops.paged_attention_tpu import KERNEL_NAME, QUERY_ROWS


def is_paged_kernel(op: Op) -> bool:
    """Tests if an operation is the kernel of `ops.paged_attention_tpu`."""
    return op.kind == "custom-call" and f"/{KERNEL_NAME}/pallas_call" in op.attributes


def paged_kernel_costs(results: Sequence[Shape], operands: Sequence[Shape]) -> tuple[float, int]:
    """Returns (FLOPs, HBM bytes) of one call.

    Args:
        operands: without repetitions: scalars and lists of integers, the queries [B, K, R, hd], and the two pools of pages
            [L, N, p, C].
    """
    pages = max((shape for shape in operands if shape.dtype.startswith("s")), key=lambda shape: shape.elements).elements
    arrays = [shape for shape in operands if len(shape.dims) == 4]
    pool = max(arrays, key=lambda shape: shape.elements)
    _, kv_heads, count, dim = next(shape for shape in arrays if shape.dims != pool.dims).dims
    tiles = -(-count // QUERY_ROWS)
    page_size, features = pool.dims[2:]
    read = 2 * tiles * pages * page_size * features * pool.bytes // pool.elements
    others = sum(shape.bytes for shape in (*results, *operands) if shape.in_hbm and shape.dims != pool.dims)
    products = 2 * 2 * kv_heads * count * dim * pages * page_size  # scores and weighted values, of one row's share
    return float(products), read + others
