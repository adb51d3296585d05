"""Sharded attention on several CPU devices equals attention on one."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from dv2_jax.config import ConfigError, MeshConfig
from dv2_jax.ops.attention import causal_segment_attention, segment_attention
from dv2_jax.parallel.mesh import BATCH_AXES, make_mesh, constrain_batch, use_mesh

shapes = [(4, 300, heads, 16) for heads in (4, 2, 2)]
q, k, v = (jax.random.normal(key, shape) for key, shape in zip(jax.random.split(jax.random.key(0), 3), shapes))
segments = jnp.asarray(np.repeat([[1] * 140 + [2] * 120 + [0] * 40], 4, 0))

def rows(q, k, v):
    return (jnp.sin(causal_segment_attention(q, k, v, segments)) * (segments > 0)[..., None, None]).sum()

def groups(q, k, v):  # as in the vision tower: a vmap shards the groups
    split = lambda x: x.reshape(2, 2, *x.shape[1:])
    attend = jax.vmap(segment_attention, spmd_axis_name=BATCH_AXES if axes else None)
    out = attend(split(q), split(k), split(v), split(segments))
    return (jnp.sin(out) * split(segments > 0)[..., None, None]).sum()

for function in (rows, groups):
    axes = False
    alone = jax.jit(jax.value_and_grad(function, (0, 1, 2)))(q, k, v)
    axes = True
    for sizes in (MeshConfig(2, 1, 2), MeshConfig(1, 2, 2)):
        mesh = make_mesh(sizes)
        place = jax.NamedSharding(mesh, jax.P(BATCH_AXES, None, "tensor"))
        with use_mesh(mesh):
            compiled = jax.jit(jax.value_and_grad(lambda *x: function(*x), (0, 1, 2)), out_shardings=(None, place)).lower(
                *(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in (q, k, v))
            ).compile()
            found = compiled(*jax.device_put((q, k, v), place))
        assert "all-gather" not in compiled.as_text() and "collective-permute" not in compiled.as_text(), (function, sizes)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(alone)):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)

causal = jax.jit(jax.value_and_grad(rows, (0, 1, 2)))(q, k, v)
def images(q, k, v):  # a single group, without a vmap
    return (jnp.sin(segment_attention(q, k, v, segments[:q.shape[0]])) * (segments > 0)[:q.shape[0], :, None, None]).sum()
full = jax.jit(jax.value_and_grad(images, (0, 1, 2)))(q, k, v)
single = jax.jit(jax.value_and_grad(images, (0, 1, 2)))(q[:1], k[:1], v[:1])
for function, expected, count in ((rows, causal, 4), (images, full, 4), (images, single, 1)):
    for sizes in (MeshConfig(2, 1, 1, context=2), MeshConfig(1, 1, 2, context=2) if count > 1 else MeshConfig(1, 2, 1, context=2)):
        if (sizes.tensor, function) == (2, rows):
            continue  # more shards than key/value heads
        mesh = make_mesh(sizes)
        assert mesh.axis_names == ("data", "fsdp", "context", "tensor") and mesh.size == 4
        with use_mesh(mesh):
            found = jax.jit(jax.value_and_grad(lambda *x: function(*x), (0, 1, 2)))(q[:count], k[:count], v[:count])
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
try:
    with use_mesh(make_mesh(MeshConfig(data=1, fsdp=1, tensor=1, context=4))):
        jax.jit(lambda *x: rows(*x))(q, k, v)
except ConfigError as error:
    assert "mesh.context=4 does not divide the 2 key/value heads" in str(error)
else:
    raise AssertionError("two key/value heads on four devices")
try:
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=1, tensor=1, context=2))):
        constrain_batch(jnp.ones((2, 7, 3)))
except ConfigError as error:
    assert "mesh.context=2 does not divide rows of 7 tokens" in str(error)
else:
    raise AssertionError("seven tokens on two devices")
print("equal")
"""


def test_no_device_needs_the_rows_or_heads_of_another():
    """Catches: an all-gather of rows, after which every device computes all of them; gradients of a part of the heads."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr[-3000:]
