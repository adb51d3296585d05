"""Segment attention by JAX's Pallas splash kernel, for TPUs.

It is used if the program is traced under `jax.set_mesh` of a TPU mesh, of attached or described devices (ahead-of-time
compilation), or on a single TPU without a mesh.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from dv2_jax.ops.attention_sharding import shard_attention
from dv2_jax.parallel.mesh import batch_axes, traced_platform

LANES = 128  # rows whose length is no multiple of this use the blocked backend
BLOCK = 512  # queries and keys per block; the kernel's default of 128 is several times slower on long rows


def available(tokens: int) -> bool:
    """Tests if this trace is for a TPU and the kernel supports the row length.

    Raises RuntimeError on several TPUs without a mesh, where every device would compute the attention of all rows.
    """
    if tokens % LANES:
        return False
    if traced_platform() != "tpu":
        return False
    if batch_axes() is None and jax.device_count() > 1:
        raise RuntimeError("several TPUs and no mesh: trace and run under `with jax.set_mesh(mesh):`")
    return True


def attention(
    q: Float[Array, "B T H hd"],
    k: Float[Array, "B T K hd"],
    v: Float[Array, "B T K hd"],
    segment_ids: Int[Array, "B T"],
    *,
    causal: bool,
    interpret: bool = False,
) -> Float[Array, "B T H hd"]:
    """Computes segment attention with the splash kernel; `interpret` runs it in interpret mode, for tests on CPU."""
    kernel = functools.partial(_local, causal=causal, interpret=interpret)
    return shard_attention(kernel, q, k, v, segment_ids, causal=causal)


def _local(q: Array, k: Array, v: Array, segments: Array, *, causal: bool, interpret: bool) -> Array:
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    heads, tokens = q.shape[1:3]
    mask = masks.CausalMask((tokens, tokens)) if causal else masks.FullMask((tokens, tokens))
    size = next(block for block in (BLOCK, 384, 256, LANES) if tokens % block == 0)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(
            block_q=size,
            block_kv=size,
            block_kv_compute=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_kv_dkv_compute=size,
            block_q_dq=size,
            block_kv_dq=size,
        ),
        interpret=interpret,
    )
    batched = jax.vmap(lambda q, k, v, s: kernel(q, k, v, splash.SegmentIds(s, s)))
    return batched(q, k, v, segments.astype(jnp.int32)).swapaxes(1, 2)
