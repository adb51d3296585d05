"""Runs three SFT and three RL steps on a mesh and writes the results to a file, for `test_train_step.py`."""

import sys

import jax
import numpy as np

from dv2_jax.config import MeshConfig, OptimConfig, RLConfig
from dv2_jax.data.packing import PackSpec, pack_step
from dv2_jax.model.params import build, init_params, logical_axes
from dv2_jax.model.vision_inputs import VisionBucket
from dv2_jax.parallel.mesh import make_mesh, param_shardings
from dv2_jax.trainer.optimizer import make_optimizer
from dv2_jax.trainer.rl_step import make_rl_step
from dv2_jax.trainer.sft_step import make_sft_step
from dv2_jax.trainer.state import init_state
from dv2_jax.trainer.train_step import shard_batch
from tests.trainer.small_model import make_examples, tiny_config

devices = jax.device_count()
config = tiny_config()
graphdef, _ = build(config)
mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)) if devices == 8 else None
shardings = param_shardings(mesh, logical_axes(config)) if mesh else None
spec = PackSpec(config, rows=4, row_tokens=128, image_buckets=(VisionBucket.for_patches(4, 64),), groups=4)
optim = OptimConfig(learning_rate=1e-3, warmup_ratio=0.0, schedule="constant")
optimizer = make_optimizer(optim, 3)
found = {}
losses = []
for name, make in (("sft", make_sft_step), ("rl", lambda g, o, n, **k: make_rl_step(g, RLConfig(), o, n, **k))):
    params = init_params(config, jax.random.key(0))
    params = jax.device_put(params, shardings) if mesh else params
    names = tuple(sorted(params))
    state = init_state(params, optimizer, names)
    step = make(graphdef, optimizer, names, param_shardings=shardings)
    for i in range(3):
        batches = pack_step(make_examples(seed=i, count=14), spec)
        state, metrics = step(state, [shard_batch(b, mesh) for b in batches])
        losses.append(metrics["loss"])
        if i == 0:
            programs = {n: f._cache_size() for n, f in step.jit_functions().items()}
    again = {n: f._cache_size() for n, f in step.jit_functions().items()}
    assert again == programs, f"a later step was compiled again: {programs} became {again}"
    if mesh:
        for n, p in state.params.items():
            assert p.sharding.is_equivalent_to(shardings[n], p.ndim), n
        assert any(not p.sharding.is_fully_replicated for p in jax.tree.leaves(state.opt_state) if p.ndim > 1)
    found |= {f"{name}.{n}": np.asarray(p) for n, p in state.params.items()}
np.savez(sys.argv[1], losses=np.array(losses), **found)
