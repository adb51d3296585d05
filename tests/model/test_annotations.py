"""Runs one training step with jaxtyping's run-time checks of the shapes in signatures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from jaxtyping import install_import_hook
with install_import_hook(["dv2_jax.model", "dv2_jax.ops"], "beartype.beartype"):
    import dv2_jax.model.qwen2_5_vl, dv2_jax.model.params, dv2_jax.ops.attention, dv2_jax.ops.logprobs
    from dv2_jax.model.image_grid import num_image_tokens
    from dv2_jax.model.params import abstract_params, build, init_params, merge
    from dv2_jax.model.positions import mrope_positions
    from dv2_jax.model.vision_inputs import VisionBucket, vision_batch
import jax, jax.numpy as jnp
from tests.model.samples import images_of, tiny_config
from dv2_jax.ops.attention import causal_segment_attention
from dv2_jax.ops.logprobs import row_logprobs

config = tiny_config(text={"num_layers": 1}, vision={"depth": 2, "fullatt_block_indexes": (1,)})
graphdef, _ = build(config)
images = images_of([(140, 168)], 400 * 400)
ids = [20, 12, *[10] * num_image_tokens(images[0][1]), 13] + [30] * 120
index = [-1, -1, *range(len(ids) - 123), -1] + [-1] * 120
positions, _ = mrope_positions(ids, [grid for _, grid in images], config)
def loss(params, vision, ids, index, positions, segments):
    model = merge(graphdef, params)
    embeds = model.embed(ids, model.encode_images(vision), index)
    attend = lambda q, k, v, cache: (causal_segment_attention(q, k, v, segments), cache)
    hidden, _ = model.hidden(embeds, positions, attend)
    return row_logprobs(hidden, model.head_kernel(), ids)[0].sum()
vision = vision_batch(images, [VisionBucket.for_patches(2, 192)], config.vision)
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
