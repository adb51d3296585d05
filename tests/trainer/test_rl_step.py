"""Tests of the RL train step on the engine's samples: log-prob gap, learning, and the reference policy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import EngineConfig, OptimConfig, RLConfig
from dv2_jax.data.packing import PackSpec, pack_step
from dv2_jax.data.question import Question
from dv2_jax.engine.engine import Engine
from dv2_jax.engine.stop_strings import StopAutomaton
from dv2_jax.model.vision_inputs import VisionBucket
from dv2_jax.rl.advantage_registry import compute_advantages
from dv2_jax.rl.batch import make_minibatches
from dv2_jax.rl.policy_metrics import token_metric_means
from dv2_jax.trainer.optimizer import make_optimizer
from dv2_jax.trainer.rl_step import make_logprob_fn, make_rl_step
from dv2_jax.trainer.state import init_state
from dv2_jax.trainer.train_step import shard_batch

TARGET, GROUPS, SIZE, NEW = 33, 4, 8, 8
BUCKETS = (VisionBucket.for_patches(1, 64),)


class Letters:
    """A tokenizer of 64 tokens of one byte each."""

    vocab_size = 64

    def token_bytes(self, id_):
        return bytes([id_])


@pytest.fixture(scope="module")
def forbidden():
    ids = np.zeros(64, bool)
    ids[10:16] = True
    return ids


@pytest.fixture(scope="module")
def engine(tiny, forbidden):
    config, graphdef, _ = tiny
    shapes = EngineConfig(
        slots=32, page_size=8, pages=128, prefill_rows=32, prefill_tokens=8, decode_tokens=8, image_cache_tokens=16
    )
    stop = StopAutomaton(Letters(), ["\x01\x02\x03"], [15])
    return Engine(graphdef, config, shapes, BUCKETS, stop=stop, max_tokens_per_sequence=16, seed=0, forbidden=forbidden)


def rollout(engine, step):
    """Sample SIZE trajectories for each of GROUPS prompts; the reward is the fraction of sampled tokens equal to TARGET."""
    trajectories = []
    for g in range(GROUPS):
        for k in range(SIZE):
            t = Trajectory(f"{step}-{g}-{k}", Question(f"q{g}", "plain", "perception", "", (), ""))
            t.token_ids = [20 + g, 30, 40, 50 + g]
            engine.add_sequence(t.id, step * 1000 + g * SIZE + k)
            engine.append(t.id, t.token_ids)
            engine.request_turn(t.id, NEW, 1.0)
            trajectories.append(t)
    by_id = {t.id: t for t in trajectories}
    while by_id:
        for turn in engine.step():
            t = by_id.pop(turn.seq_id)
            n = len(turn.token_ids)
            t.loss_mask = [0] * 4 + [1] * n
            t.logprobs = [0.0] * 4 + list(turn.logprobs)
            t.versions = [-1] * 4 + [turn.version] * n
            t.token_ids = t.token_ids + list(turn.token_ids)
            t.reward = turn.token_ids.count(TARGET) / n
            engine.free_sequence(t.id)
    return trajectories


@pytest.mark.parametrize("algorithm", [{}, {"algorithm": "deepeyesv2", "minibatches": 2}])
def test_rl_step_learns_from_engine_samples_with_a_log_prob_gap_of_rounding_size(tiny, engine, forbidden, algorithm):
    """Catches: a loss of the wrong sign, log-probs of the wrong tokens or of a distribution other than the sampler's."""
    config, graphdef, params = tiny
    rl = dataclasses.replace(RLConfig(), **algorithm)
    names = tuple(sorted(params))
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-2, warmup_ratio=0.0, schedule="constant"), 30)
    update = make_rl_step(graphdef, rl, optimizer, names, forbidden=jnp.asarray(forbidden))
    state = init_state(jax.tree.map(jnp.copy, params), optimizer, names)
    spec = PackSpec(config, 4, 96, BUCKETS)
    rewards, gaps = [], []
    for step in range(25):
        engine.set_params(state.params, step)
        trajectories = rollout(engine, step)
        reward = np.array([t.reward for t in trajectories])
        advantages = compute_advantages("grpo", reward, np.repeat(np.arange(GROUPS), SIZE))
        rewards.append(reward.mean())
        for number, part in enumerate(make_minibatches(trajectories, advantages, rl)):
            if not part.examples:
                continue
            batches = pack_step(part.examples, spec, denominator=part.denominator)
            state, metrics = update(state, [shard_batch(b, None) for b in batches])
            metrics = token_metric_means(metrics)
            if number == 0:
                gaps.append((metrics["logprob_gap_max"], metrics["logprob_gap_abs"]))
                assert metrics["clipped_high"] == metrics["clipped_low"] == 0
        if rewards[-1] > 0.9:
            break
    assert rewards[0] < 0.1 and rewards[-1] > 0.6
    assert np.max(gaps, axis=0)[0] <= 1e-4 and np.max(gaps, axis=0)[1] <= 1e-6 * 10
    assert update.compiled_programs() == 3


@pytest.mark.long
def test_the_kl_term_pulls_the_policy_back_to_the_reference(tiny, engine, forbidden):
    """Catches: a KL term without a gradient, or one that is zero because it compares the policy with itself."""
    config, graphdef, params = tiny
    names = tuple(sorted(params))
    spec = PackSpec(config, 4, 96, BUCKETS)
    logprob_fn = make_logprob_fn(graphdef, forbidden=jnp.asarray(forbidden))
    engine.set_params(params, 0)
    trajectories = rollout(engine, 0)
    moved = {name: p + 0.05 * jax.random.normal(jax.random.key(1), p.shape) for name, p in params.items()}
    optimizer = make_optimizer(OptimConfig(learning_rate=3e-3, warmup_ratio=0.0, schedule="constant"), 10)
    rl = RLConfig(kl_coefficient=1.0)
    update = make_rl_step(graphdef, rl, optimizer, names, forbidden=jnp.asarray(forbidden))
    (part,) = make_minibatches(trajectories, np.zeros(len(trajectories)), rl)
    batches = [shard_batch(b, None) for b in pack_step(part.examples, spec, denominator=part.denominator)]
    with_reference = [dataclasses.replace(b, reference_logprobs=logprob_fn(params, b)) for b in batches]
    for batch in batches:  # the log-prob function computes the distribution that the engine sampled from
        used = np.asarray(batch.loss_weight) > 0
        gap = np.abs(np.asarray(logprob_fn(params, batch)) - np.asarray(batch.behavior_logprobs))[used]
        assert gap.max() <= 1e-4
    state = init_state(moved, optimizer, names)
    losses = []
    for _ in range(15):
        state, metrics = update(state, with_reference)
        losses.append(metrics["loss"])
    assert losses[-1] < 0.5 * losses[0]
