"""Memory of the chunked log-probs at the published vocabulary, as planned by the TPU compiler, without a TPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from dv2_jax.ops.logprobs import chunked_logprobs
from dv2_jax.aot.compile import topology_devices
from dv2_jax.trainer.forward import LOGIT_CHUNK

place = SingleDeviceSharding(topology_devices("v5p:2x2x1")[0])
tokens, width, vocabulary = 4096, 3584, 152064
def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)
def loss(hidden, head, targets):
    return chunked_logprobs(hidden, head, targets, chunk=LOGIT_CHUNK)[0].sum()
arguments = array(tokens, width), array(width, vocabulary), array(tokens, dtype=jnp.int32)
compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()
print(compiled.memory_analysis().temp_size_in_bytes)
"""


def test_loss_and_gradient_of_4096_tokens_need_less_than_400_megabytes():
    """Catches: materialized logits, which take 5 GB in fp32 with their gradient."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install 'dv2_jax[tpu]'")
    environment = os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) < 0.4e9
