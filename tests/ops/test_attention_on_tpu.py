"""The TPU backend of attention through the real TPU compiler, without a TPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from dv2_jax.config import MeshConfig
from dv2_jax.ops.attention import causal_segment_attention, segment_attention
from dv2_jax.aot.compile import topology_devices
from dv2_jax.parallel.mesh import BATCH_AXES, make_mesh

mesh = make_mesh(MeshConfig(1, -1, 2), topology_devices("v5p:2x2x2"))
def array(*shape, spec, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
def compile(function, *arguments):
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(function, argnums=(0, 1, 2))).lower(*arguments).compile().as_text()
    assert text.count("tpu_custom_call") >= 3, "forward, dq and dkv kernels"
    assert "all-gather" not in text, "rows or heads are gathered"
rows = (BATCH_AXES, None, "tensor", None)
q, kv = array(8, 1024, 28, 128, spec=rows), array(8, 1024, 4, 128, spec=rows)
compile(lambda q, k, v, s: causal_segment_attention(q, k, v, s).astype(jnp.float32).sum(),
        q, kv, kv, array(8, 1024, spec=(BATCH_AXES,), dtype=jnp.int32))
images = array(4, 2, 1408, 16, 80, spec=(BATCH_AXES, None, None, "tensor", None))
compile(lambda q, k, v, s: jax.vmap(segment_attention, spmd_axis_name=BATCH_AXES)(q, k, v, s).astype(jnp.float32).sum(),
        images, images, images, array(4, 2, 1408, spec=(BATCH_AXES,), dtype=jnp.int32))
print("compiled")
"""


def test_splash_compiles_for_a_sharded_slice_without_gathering_rows_or_heads():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install 'dv2_jax[tpu]'")
    environment = os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "compiled" in done.stdout, done.stderr[-3000:]
