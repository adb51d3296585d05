"""Compares the gradients of one step on several meshes with those on one device: SFT, and RL with sequence ratios.

`test_gradients_on_meshes.py` runs it in a process with four devices.
"""

from __future__ import annotations

import math

import jax
import numpy as np
import optax

from dv2_jax.config import MeshConfig, RLConfig
from dv2_jax.data.packing import PackSpec, pack_step
from dv2_jax.model.params import build, init_params, logical_axes
from dv2_jax.model.vision_inputs import VisionBucket
from dv2_jax.parallel.mesh import make_mesh, param_shardings
from dv2_jax.trainer.rl_step import make_rl_step
from dv2_jax.trainer.sft_step import make_sft_step
from dv2_jax.trainer.train_step import shard_batch
from tests.trainer.small_model import make_examples, tiny_config

CONFIG = tiny_config()
SPEC = PackSpec(CONFIG, rows=4, row_tokens=128, image_buckets=(VisionBucket.for_patches(4, 64),), groups=4)
EXAMPLES = make_examples(count=18)  # two microbatches
# Means over the sequences of packed rows; bounds so wide that no gradient is clipped away.
GSPO = RLConfig(algorithm="gspo", clip_low=1.0, clip_high=1e3)


def gradients(sizes: MeshConfig | None, rl: RLConfig | None = None) -> dict[str, np.ndarray]:
    """Return the gradient of the SFT loss, or of the policy loss of `rl`, on a mesh of these sizes or on one device."""
    params = init_params(CONFIG, jax.random.key(0))
    mesh = make_mesh(sizes) if sizes else None
    shardings = param_shardings(mesh, logical_axes(CONFIG)) if mesh else None
    params = jax.device_put(params, shardings) if mesh else params
    graphdef, optimizer, names = build(CONFIG)[0], optax.sgd(1.0), tuple(sorted(params))
    if rl is None:
        step = make_sft_step(graphdef, optimizer, names, param_shardings=shardings)
    else:
        step = make_rl_step(graphdef, rl, optimizer, names, param_shardings=shardings)
    batches = pack_step(EXAMPLES, SPEC)
    assert len(batches) >= 2
    batches = [shard_batch(batch, mesh) for batch in batches]
    if sizes:
        patches, apart = batches[0].vision.patches, sizes.data * sizes.fsdp * sizes.context
        assert apart * math.prod(patches.sharding.shard_shape(patches.shape)) == patches.size, "patches are replicated"
    found, _ = step.gradients(params, batches)
    return {name: np.asarray(g) for name, g in found.items()}


def main() -> None:
    alone = {rl: gradients(None, rl) for rl in (None, GSPO)}
    for sizes, rl in (
        (MeshConfig(4, 1, 1), None),
        (MeshConfig(1, 2, 2), None),
        (MeshConfig(1, 2, 1, context=2), None),
        (MeshConfig(2, 1, 1, context=2), None),
        (MeshConfig(1, 2, 1, context=2), GSPO),
    ):
        for name, found in gradients(sizes, rl).items():
            error = np.abs(found - alone[rl][name]).max() / np.abs(alone[rl][name]).max()
            assert error <= 2e-5, f"{sizes}, {rl}: {name} differs by {error:.1e} of its largest"
    print("equal")


if __name__ == "__main__":
    main()
