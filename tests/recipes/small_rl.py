"""A small RL run: the tiny architecture with one layer per tower, so that it compiles quickly."""

from dataclasses import replace

import numpy as np

from dv2_jax.checkpoint import policy_spec
from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.config import (
    AgentConfig,
    Config,
    EngineConfig,
    EvalConfig,
    ImageConfig,
    ModelSource,
    OptimConfig,
    RLConfig,
    RunConfig,
    TaskConfig,
)
from dv2_jax.recipes import run as run_module


def one_layer_spec(source):
    """Return the result of `load_policy_spec` with one layer per tower; everything else is unchanged."""
    found = policy_spec.load_policy_spec(source)
    text = replace(found.config.text, num_layers=1)
    vision = replace(found.config.vision, depth=1, fullatt_block_indexes=(0,))
    return replace(found, config=replace(found.config, text=text, vision=vision))


def reward_by_length(trajectories, tokenizer, config):
    """Reward the fraction of even tokens: a random policy never answers, and needs a learnable reward."""
    for t in trajectories:
        sampled = [i for i, m in zip(t.token_ids, t.loss_mask, strict=True) if m]
        t.reward = float(np.mean([i % 2 == 0 for i in sampled]))
        t.reward_parts = {"accuracy": 0.0, "format": 0.0, "penalty": 0.0, "total": t.reward}


def small_config(root) -> Config:
    return Config(
        run=RunConfig(name="rl", root=str(root), tensorboard=False),
        model=ModelSource(init="random"),
        image=ImageConfig(max_pixels=56 * 56),
        agent=AgentConfig(max_turns=2, max_turn_tokens=12, max_total_tokens=256, max_images=2),
        engine=EngineConfig(
            slots=8, page_size=128, pages=32, prefill_rows=1, prefill_tokens=128, decode_tokens=4, image_cache_tokens=64
        ),
        task=TaskConfig(skills=("plain",), train_size=16, eval_size=3),
        optim=OptimConfig(learning_rate=1e-3),
        rl=RLConfig(
            steps=3, prompts_per_step=2, group_size=4, microbatch_rows=2, row_tokens=256, checkpoint_every=1,
            keep_trajectories=8,
        ),
        eval=EvalConfig(stages=("cold_start", "rl")),
    )  # fmt: skip


def weights(config: Config):
    """Load the newest checkpoint of a run with `one_layer_spec`: its step, and its weights on one device."""
    found = run_module.load_policy(config)
    abstract = run_module.abstract_state(found, run_module.make_optimizer_bundle(config, found, config.rl.steps))
    with CheckpointStore(f"{config.run.root}/{config.run.name}/checkpoints", read_only=True) as store:
        restored = store.restore(abstract.params, abstract.opt_state)
    return restored.step, {name: np.asarray(array) for name, array in restored.params.items()}
