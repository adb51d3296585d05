"""Tests scheduler and engine together, with random weights and many tokens that end a turn.

The turns contain no valid tool call, so every turn but the last is answered by an error message: multi-turn
trajectories without a tool. Catches: ids, masks or log-probs that differ between engine and trajectory, samples that
depend on the other trajectories in flight, pages that are not freed.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.agent.trajectory import Finish
from dv2_jax.config import AgentConfig, ImageConfig, SamplingConfig
from dv2_jax.engine import StopAutomaton
from dv2_jax.rollout.scheduler import RolloutRequest, RolloutScheduler
from tests.engine.small_world import SMALL, make_world
from tests.rollout.rollout_cases import TOOLS, question

AGENT = AgentConfig(max_turns=3, max_turn_tokens=40, max_total_tokens=400, max_images=4)


@pytest.fixture(scope="module")
def world():
    world = make_world()
    ends = np.random.default_rng(0).choice(1000, size=80, replace=False).tolist()
    eos = world.tokenizer.id("<|im_end|>")
    return dataclasses.replace(world, stop=StopAutomaton(world.tokenizer, ["</code>"], [*ends, eos]))


def roll_out(world, client, names, **sizes):
    engine = world.engine(max_tokens=AGENT.max_total_tokens, **sizes)
    prompt_encoder = PromptEncoder(world.tokenizer, ImageConfig(), AGENT)
    rollout = RolloutScheduler(engine, client, prompt_encoder, AGENT, TOOLS, SamplingConfig())
    requests = [RolloutRequest(question(n % 3, n % 3, f"Question {n % 3}?"), f"t{n}", 50 + n) for n in names]
    trajectories = rollout.run(requests)
    assert engine.free_pages == sizes.get("pages", SMALL.pages)
    return {trajectory.id: trajectory for trajectory in trajectories}, rollout.stats


def test_trajectories_are_exact_and_do_not_depend_on_their_company(world, client):
    trajectories, stats = roll_out(world, client, range(9), pages=200)
    assert {t.finish for t in trajectories.values()} <= {Finish.MAX_TURNS, Finish.TURN_LIMIT, Finish.MAX_TOKENS}
    assert sum(len(t.turns) for t in trajectories.values()) > 15
    assert stats["sampled_tokens"] == sum(t.sampled_tokens for t in trajectories.values())
    for trajectory in trajectories.values():
        sampled = np.array(trajectory.loss_mask, bool)
        full = world.full_logprobs(trajectory.token_ids, trajectory.images, 1.0)
        np.testing.assert_allclose(np.array(trajectory.logprobs)[sampled], full[sampled], atol=1e-4)
        assert (np.array(trajectory.versions)[sampled] == 3).all() and (
            np.array(trajectory.versions)[~sampled] == -1
        ).all()

    fewer, _ = roll_out(world, client, [7, 2, 5], pages=200)
    for name, trajectory in fewer.items():
        assert trajectory.token_ids == trajectories[name].token_ids
