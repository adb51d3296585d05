"""Tests of the conversion of trajectories to minibatches: loss weights, denominators and skipped trajectories."""

import jax
import numpy as np
import pytest

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import RLConfig
from dv2_jax.data.question import Question
from dv2_jax.rl.batch import make_minibatches, mask_truncated
from dv2_jax.rl.policy_metrics import rollout_mismatch_metrics, token_metric_means

QUESTION = Question("q", "plain", "perception", "?", (), "7")


def trajectory(sampled, prompt=3, *, dropped=False):
    ids = list(range(prompt + sampled + 2))
    mask = [0] * prompt + [1] * sampled + [0] * 2
    logprobs = [-0.5 * m for m in mask]
    return Trajectory(f"t{sampled}", QUESTION, ids, mask, logprobs, [0 if m else -1 for m in mask], dropped=dropped)


def test_token_mean_counts_the_tokens_of_zero_advantage_trajectories():
    """Catches: a denominator over computed trajectories only, or one that counts prompts or lost trajectories."""
    rollouts = [trajectory(4), trajectory(6), trajectory(5, dropped=True), trajectory(7)]
    (part,) = make_minibatches(rollouts, [1.0, 0.0, 0.5, -1.0], RLConfig())
    assert part.denominator == 4 + 6 + 7
    assert [e.advantage for e in part.examples] == [1.0, -1.0]
    assert [e.weight for e in part.examples] == [4, 7]
    assert part.examples[0].loss_weight[:3].sum() == 0 and part.examples[0].behavior_logprobs[3] == -0.5


def test_sequence_mean_gives_every_trajectory_the_same_weight():
    """Catches: long trajectories that outweigh short ones under the released aggregation."""
    rollouts = [trajectory(4), trajectory(6), trajectory(5), trajectory(7)]
    config = RLConfig(aggregation="sequence_mean", minibatches=2)
    first, second = make_minibatches(rollouts, [1.0, -1.0, 0.0, 1.0], config)
    assert first.denominator == second.denominator == 2.0
    np.testing.assert_allclose([e.weight for e in first.examples + second.examples], 1.0, rtol=1e-6)


def test_lost_trajectories_count_in_means_over_sequences():
    """Catches: a denominator without lost trajectories, which scales up the step of a batch that lost half of them."""
    rollouts = [trajectory(4), trajectory(6, dropped=True), trajectory(5), trajectory(7)]
    (mean,) = make_minibatches(rollouts, [1.0, 0.0, 0.5, -1.0], RLConfig(aggregation="sequence_mean"))
    assert mean.denominator == 4.0 and len(mean.examples) == 3
    for length, expected in ((None, 4 * 1024), (100, 400)):
        config = RLConfig(aggregation="sequence_sum", max_response_tokens=length)
        (total,) = make_minibatches(rollouts, [1.0, 0.0, 0.5, -1.0], config)
        assert total.denominator == expected and [e.weight for e in total.examples] == [4, 5, 7]


def test_truncated_trajectories_leave_the_loss():
    """Catches: overlong filtering that keeps the tokens in the denominator or masks trajectories that answered."""
    tokens = mask_truncated(np.array([4, 6, 5, 7]), ["answer", "turn_limit", "max_turns", "max_tokens"])
    assert tokens.tolist() == [4, 0, 5, 0]
    rollouts = [trajectory(n) for n in (4, 6, 5, 7)]
    (part,) = make_minibatches(rollouts, [1.0, 1.0, -1.0, -1.0], RLConfig(), tokens)
    assert part.denominator == 9 and [e.weight for e in part.examples] == [4, 5]


def test_a_kl_term_keeps_trajectories_without_advantage():
    """Catches: a KL penalty that is applied only to groups with reward variance."""
    rollouts = [trajectory(4), trajectory(6)]
    assert len(make_minibatches(rollouts, [0.0, 0.0], RLConfig(kl_coefficient=0.1))[0].examples) == 2
    assert not make_minibatches(rollouts, [0.0, 0.0], RLConfig())[0].examples


def test_hosts_use_the_denominator_of_all_hosts():
    """Catches: a denominator of one host's trajectories only, and trajectories that two hosts compute."""
    rollouts = [trajectory(4), trajectory(6), trajectory(5, dropped=True), trajectory(7)]
    advantages, tokens = [1.0, 0.5, 0.5, -1.0], np.array([4, 6, 0, 7])
    for aggregation in ("token_mean", "sequence_mean", "sequence_sum"):
        config = RLConfig(aggregation=aggregation)
        (alone,) = make_minibatches(rollouts, advantages, config)
        parts = [
            make_minibatches(
                [t if i % 2 == host else None for i, t in enumerate(rollouts)], advantages, config, tokens
            )[0]
            for host in range(2)
        ]
        assert [part.denominator for part in parts] == [alone.denominator] * 2
        weights = [
            sorted(e.weight for e in examples) for examples in (alone.examples, parts[0].examples + parts[1].examples)
        ]
        assert weights[0] == weights[1]


def test_a_broken_trajectory_is_refused_by_name():
    """Catches: lists of different lengths, or a sampled token without log-prob, reaching the loss."""
    short = trajectory(4)
    short.logprobs.pop()
    with pytest.raises(ValueError, match="'t4': its lists differ in length"):
        make_minibatches([short], [1.0], RLConfig())
    nan = trajectory(5)
    nan.logprobs[4] = float("nan")
    with pytest.raises(ValueError, match="'t5': the behavior log-prob"):
        make_minibatches([nan], [1.0], RLConfig())
    with pytest.raises(ValueError, match="rl.minibatches=2"):
        make_minibatches([trajectory(4)], [1.0], RLConfig(minibatches=2))


def test_mismatch_estimates_the_divergence_of_sampler_and_trainer():
    """Catches: k1 with the wrong sign, masked tokens in the sums, a maximum without absolute value."""
    rng = np.random.default_rng(0)
    mu = rng.dirichlet(np.ones(8) * 5)
    pi = 0.7 * mu + 0.3 * rng.dirichlet(np.ones(8) * 5)
    drawn = rng.choice(8, 200_000, p=mu)
    used = rng.random(len(drawn)) < 0.5
    gap = np.log(pi[drawn]) - np.log(mu[drawn])
    sums = {
        k: float(v)
        for k, v in jax.jit(rollout_mismatch_metrics)(
            np.log(pi[drawn])[None], np.log(mu[drawn])[None], used[None]
        ).items()
    }
    means = token_metric_means(sums | {"loss_tokens": float(used.sum())})
    divergence = float((mu * np.log(mu / pi)).sum())
    assert means["logprob_gap_k1"] == pytest.approx(divergence, rel=0.1)
    assert means["logprob_gap_k3"] == pytest.approx(divergence, rel=0.05)
    assert means["ratio"] == pytest.approx(1.0, rel=0.02)
    assert means["logprob_gap_max"] == pytest.approx(np.abs(gap[used]).max(), rel=1e-5)
    assert means["logprob_gap_abs"] == pytest.approx(np.abs(gap[used]).mean(), rel=1e-3)


def test_masks_of_any_loss_become_shares_of_the_loss_tokens():
    """Catches: a fixed list of token metrics, which logs the sums of a loss from outside the package."""
    sums = {"cut": 3.0, "kl_reference": 0.5, "loss_tokens": 6.0, "loss": 1.5, "grad_norm": 2.0, "logprob_gap_max": 0.1}
    assert token_metric_means(sums) == sums | {"cut": 0.5, "kl_reference": 0.5 / 6}
    assert token_metric_means({"cut": 0.0, "loss_tokens": 0.0}) == {"cut": 0.0, "loss_tokens": 0.0}
