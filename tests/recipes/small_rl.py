"""A small RL run: the tiny architecture with one layer per tower, so that it compiles quickly."""

from dataclasses import replace

import numpy as np

from dv2_jax.checkpoint.policy_spec import load_policy_spec
from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.config import (
    AgentConfig,
    Config,
    EngineConfig,
    ImageConfig,
    ModelSource,
    OptimConfig,
    RLConfig,
    RunConfig,
    TaskConfig,
)
from dv2_jax.policy import Policy, load_policy
from dv2_jax.trainer.optimizer import make_optimizer_bundle
from dv2_jax.trainer.state import abstract_state


def one_layer_policy(config: Config) -> Policy:
    """Return the policy of `config` with one layer per tower; everything else is unchanged."""
    found = load_policy_spec(config.model)
    text = replace(found.config.text, num_layers=1)
    vision = replace(found.config.vision, depth=1, fullatt_block_indexes=(0,))
    return load_policy(config, spec=replace(found, config=replace(found.config, text=text, vision=vision)))


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
    )  # fmt: skip


def weights(config: Config):
    """Load the newest checkpoint of a run with `one_layer_policy`: its step, and its weights on one device."""
    policy = one_layer_policy(config)
    bundle = make_optimizer_bundle(config, policy.logical_axes, config.rl.steps)
    abstract = abstract_state(policy.params, bundle.optimizer, bundle.trainable)
    with CheckpointStore(f"{config.run.root}/{config.run.name}/checkpoints", read_only=True) as store:
        restored = store.restore(abstract.params, abstract.opt_state)
    return restored.step, {name: np.asarray(array) for name, array in restored.params.items()}
