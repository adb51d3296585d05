"""Tests of every algorithm against stored values of TRL and verl (see `make_reference_values.py`)."""

import functools

import jax
import numpy as np
import pytest

from dv2_jax.config import RLConfig
from dv2_jax.rl.advantage_registry import ADVANTAGES, compute_advantages
from dv2_jax.rl.aggregation import AGGREGATIONS
from dv2_jax.rl.algorithms import resolve_algorithm
from dv2_jax.rl.loss_registry import POLICY_LOSSES
from dv2_jax.rl.objective import make_objective
from tests.rl.reference_inputs import NOISE, REFERENCE_FILE, TOKENS, loss_inputs, reward_inputs

VALUES = np.load(REFERENCE_FILE)
PRESETS = ("dapo", "grpo", "dr_grpo", "gspo", "cispo", "rloo", "deepeyesv2")
CONFIGS = {name: RLConfig(algorithm=name, row_tokens=TOKENS) for name in PRESETS} | {
    "sapo": RLConfig(loss="sapo", aggregation="sequence_mean"),
    "reinforce": RLConfig(loss="reinforce"),
}


@functools.partial(jax.jit, static_argnames="config")
def evaluate(logprobs, old, advantages, weight, segments, denominator, reference=None, *, config):
    """Compute loss, token metrics and the gradient with respect to the log-probs."""
    objective = make_objective(config)
    run = jax.value_and_grad(
        lambda x: objective(x, old, advantages, weight, segments, denominator, reference), has_aux=True
    )
    (loss, metrics), gradient = run(logprobs)
    return loss, metrics, gradient


def columns(inputs, config):
    """Return the objective's arguments for one sequence per row, weighted as the configuration aggregates."""
    aggregate = AGGREGATIONS.get(resolve_algorithm(config).aggregation)
    weights, denominator = aggregate(inputs.mask.sum(1), config)
    advantages = np.repeat(inputs.advantages[:, None], TOKENS, 1)
    segments = np.ones(inputs.mask.shape, np.int32)
    return inputs.logprobs, inputs.old_logprobs, advantages, inputs.mask * weights[:, None], segments, denominator


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradient_equal_trl_and_verl(name, noise):
    """Catches: a changed clip value or aggregation of an algorithm, a fully masked row that changes a denominator, a
    ratio with gradient where it must be constant, a sequence ratio over masked tokens."""
    config = CONFIGS[name]
    loss, _, gradient = evaluate(*columns(loss_inputs(noise), config), config=config)
    peers = [peer for peer in ("trl", "verl") if f"{noise}/{name}/{peer}/loss" in VALUES]
    assert peers == (["verl"] if name in ("rloo", "reinforce") else ["trl", "verl"])
    for peer in peers:
        assert float(loss) == pytest.approx(float(VALUES[f"{noise}/{name}/{peer}/loss"]), abs=1e-6), peer
        np.testing.assert_allclose(gradient, VALUES[f"{noise}/{name}/{peer}/gradient"], atol=1e-6, err_msg=peer)
    assert np.all(np.asarray(gradient)[6] == 0.0), "a masked trajectory has no gradient"


@pytest.mark.parametrize("noise", NOISE)
def test_the_kl_term_equals_verl(noise):
    """Catches: k3 with swapped arguments, a KL metric over masked tokens, a coefficient that is applied twice."""
    inputs = loss_inputs(noise)
    plain = RLConfig(loss="reinforce")
    with_kl = RLConfig(loss="reinforce", kl_coefficient=0.25)
    without, _, gradient_without = evaluate(*columns(inputs, plain), config=plain)
    loss, metrics, gradient = evaluate(*columns(inputs, with_kl), inputs.reference_logprobs, config=with_kl)
    expected = float(VALUES[f"{noise}/kl/verl/loss"])
    assert float(loss - without) == pytest.approx(0.25 * expected, abs=1e-6)
    assert float(np.sum(metrics["kl_reference"]) / inputs.mask.sum()) == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(gradient - gradient_without, 0.25 * VALUES[f"{noise}/kl/verl/gradient"], atol=1e-6)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "batch"])
def test_advantages_equal_verl_and_trl(name):
    """Catches: a biased standard deviation, a wrong epsilon, a baseline that includes the trajectory itself in RLOO."""
    rewards, groups = reward_inputs()
    np.testing.assert_allclose(compute_advantages(name, rewards, groups), VALUES[f"advantage/{name}"], atol=1e-9)


def test_every_registered_function_is_compared():
    """Catches: a loss, estimator or aggregation that is added without an oracle."""
    resolved = [resolve_algorithm(config) for config in CONFIGS.values()]
    assert {config.loss for config in resolved} == set(POLICY_LOSSES.names())
    assert {config.aggregation for config in resolved} == set(AGGREGATIONS.names())
    assert {f"advantage/{name}" for name in ADVANTAGES.names()} == {n for n in VALUES if n.startswith("advantage/")}


@pytest.mark.parametrize("name", CONFIGS)
def test_packing_and_microbatches_do_not_change_the_loss(name):
    """Catches: a sequence mean over a packed row or over its padding, and losses of microbatches that do not add."""
    config, inputs = CONFIGS[name], loss_inputs("far")
    *padded, segments, denominator = columns(inputs, config)
    alone = evaluate(*padded, segments, denominator, config=config)
    lengths = [24, 7, 13, 24, 1, 18, 20]
    packed_loss, gradient = 0.0, np.zeros_like(inputs.logprobs)
    for rows in ([[0, 4], [1, 2, 5]], [[3], [6]]):  # two microbatches of two rows with 40 positions
        arrays = [np.full((2, 40), np.nan), np.full((2, 40), np.nan), np.zeros((2, 40)), np.zeros((2, 40))]
        ids, places = np.zeros((2, 40), np.int32), []
        for b, row in enumerate(rows):
            start = 0
            for segment, i in enumerate(row, start=1):
                part = slice(start, start + lengths[i])
                for target, source in zip(arrays, padded, strict=True):
                    target[b, part] = source[i, : lengths[i]]
                ids[b, part] = segment
                places.append((i, b, part))
                start = part.stop
        loss, _, found = evaluate(*arrays, ids, denominator, config=config)
        packed_loss += float(loss)
        for i, b, part in places:
            gradient[i, : lengths[i]] = found[b, part]
        assert np.all(np.isfinite(found))
    assert packed_loss == pytest.approx(float(alone[0]), abs=1e-6)
    np.testing.assert_allclose(gradient, alone[2], atol=1e-6)
