"""The shapes in the signatures are true: one step of everything with jaxtyping's runtime check switched on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from jaxtyping import install_import_hook
with install_import_hook(["dv2_jax.model", "dv2_jax.ops"], "beartype.beartype"):
    import dv2_jax.model, dv2_jax.ops.attention, dv2_jax.ops.logprobs
import jax, jax.numpy as jnp
from samples import pictures_of, tiny_config
from dv2_jax.model import *
from dv2_jax.ops.attention import causal_segment_attention
from dv2_jax.ops.logprobs import row_logprobs

config = tiny_config(num_layers=1, vision_depth=2, fullatt_block_indexes=(1,))
graphdef, _ = build(config)
pictures = pictures_of([(140, 168)], 400 * 400)
ids = [20, 12, *[10] * merged_tokens(pictures[0][1]), 13] + [30] * 120
index = [-1, -1, *range(len(ids) - 123), -1] + [-1] * 120
positions, _ = mrope_positions(ids, [grid for _, grid in pictures], config)
def loss(params, vision, ids, index, positions, segments):
    model = merge(graphdef, params)
    embeds = model.embed(ids, model.encode_images(vision), index)
    attend = lambda q, k, v, cache: (causal_segment_attention(q, k, v, segments), cache)
    hidden, _ = model.hidden(embeds, positions, attend)
    return row_logprobs(hidden, model.head_kernel(), ids)[0].sum()
vision = vision_batch(pictures, [VisionBucket.of(2, 192)], config.vision)
arrays = jnp.array([ids]), jnp.array([index]), jnp.array(positions)[:, None], jnp.ones((1, len(ids)), jnp.int32)
jax.eval_shape(jax.grad(loss), abstract_params(config), vision, *arrays)
try:
    merge(graphdef, init_params(config, jax.random.key(0))).embed(jnp.zeros(5, jnp.int32))
except Exception as error:
    print("caught", type(error).__name__)
"""


def test_signatures_hold_at_run_time_and_a_wrong_rank_is_caught():
    here = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(here)!r})\n{PROGRAM}"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=here,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "caught TypeCheckError"
