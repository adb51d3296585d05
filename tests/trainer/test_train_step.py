"""Tests of the train step: the gradient is invariant to the split over rows, microbatches, groups and devices."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dv2_jax.config import OptimConfig
from dv2_jax.data.packing import build_batch, pack_step, with_shared_denominator
from dv2_jax.model.vision_inputs import VisionBucket
from dv2_jax.parallel import distributed
from dv2_jax.telemetry.recompilation import RecompilationCounter
from dv2_jax.trainer.optimizer import learning_rate_schedule, make_optimizer, trainable_names
from dv2_jax.trainer.rl_step import make_logprob_fn
from dv2_jax.trainer.sft_step import make_sft_step, sft_loop
from dv2_jax.trainer.state import init_state
from dv2_jax.trainer.train_step import pack_local, shard_batch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def step(tiny):
    _, graphdef, params = tiny
    return make_sft_step(graphdef, optax.sgd(1.0), tuple(sorted(params)))


@pytest.fixture(scope="module")
def alone(tiny, spec, examples, step):
    """Return loss and gradient with one example per row and microbatch, so that segments cannot leak."""
    one = spec(rows=1)
    batches = with_shared_denominator([build_batch([[e]], one) for e in examples])
    return step.gradients(tiny[2], [shard_batch(b, None) for b in batches])


def assert_same(got, expected):
    (gradients, metrics), (reference, reference_metrics) = got, expected
    assert metrics["loss"] == pytest.approx(reference_metrics["loss"], rel=2e-6)
    assert metrics["trained_tokens"] == reference_metrics["trained_tokens"]
    for name, g in reference.items():
        scale = float(np.abs(g).max()) + 1e-6
        np.testing.assert_allclose(np.asarray(gradients[name]) / scale, np.asarray(g) / scale, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("rows", "groups"), [(2, 1), (4, 2), (8, 8)])
def test_packed_gradient_equals_that_of_unpacked_examples(tiny, spec, examples, step, alone, rows, groups):
    """Catches: attention, positions, targets or images that leak between segments; misaligned loss weights."""
    batches = pack_step(examples, spec(rows, groups))
    assert len(batches) == {2: 2, 4: 1, 8: 1}[rows]
    assert_same(step.gradients(tiny[2], [shard_batch(b, None) for b in batches]), alone)


def test_hosts_get_equally_many_microbatches_of_the_same_shapes(spec, examples, monkeypatch):
    """Catches: a deadlock because hosts have different numbers of microbatches or different image buckets."""
    single_host = pack_local(examples, spec(), 7.0)
    assert jax.tree.all(jax.tree.map(np.array_equal, single_host, pack_step(examples, spec(), denominator=7.0)))
    assert pack_local([], spec(), 7.0)[0].loss_weight.shape == (2, 128)

    monkeypatch.setattr(distributed, "allgather_json", lambda own: [own, [1, 0, 0, 1]])
    batches = pack_local([e for e in examples if not e.images][:1], spec(), 7.0)
    assert [b.vision.patches.shape[1] for b in batches] == [12, 4, 4, 12]
    assert [bool(b.segment_ids.any()) for b in batches] == [True, False, False, False]
    assert all(b.denominator == 7.0 for b in batches)


def test_text_only_batches_need_no_image_bucket(tiny, spec, examples, step):
    """Catches: a different loss or gradient when the vision tower is not part of the program."""
    texts = [e for e in examples if not e.images]
    [with_vision] = pack_step(texts, spec(rows=4))
    [without_vision] = pack_step(texts, replace(spec(rows=4), image_buckets=(VisionBucket(0, 64, 0),)))
    (gradients, metrics), (expected, expected_metrics) = (
        step.gradients(tiny[2], [shard_batch(b, None)]) for b in (without_vision, with_vision)
    )
    assert metrics == pytest.approx(expected_metrics, rel=1e-6)
    for name, g in expected.items():
        np.testing.assert_allclose(gradients[name], g, atol=1e-6 * (1 + float(np.abs(g).max())), err_msg=name)


def test_every_parameter_gets_a_gradient(alone):
    """Catches: a tower cut off from the loss, e.g. images whose embeddings are never read."""
    assert not [name for name, g in alone[0].items() if not np.any(g)]


def test_loss_equals_a_float64_mean_over_trained_tokens(tiny, spec, examples, step):
    """Catches: targets shifted wrongly and a denominator that counts padding or prompts."""
    total, tokens = 0.0, 0.0
    logprob_fn = make_logprob_fn(tiny[1])
    for e in examples:
        batch = shard_batch(build_batch([[e]], spec(rows=1)), None)
        logprobs = logprob_fn(tiny[2], batch)
        next_token_logprobs = np.asarray(logprobs, np.float64)[0, : len(e.token_ids) - 1]
        total -= (next_token_logprobs * np.asarray(e.loss_weight)[1:]).sum()
        tokens += np.asarray(e.loss_weight)[1:].sum()
    _, metrics = step.gradients(tiny[2], [shard_batch(b, None) for b in pack_step(examples, spec())])
    assert metrics["loss"] == pytest.approx(total / tokens, rel=1e-6)


def test_a_step_with_other_microbatch_counts_compiles_nothing(tiny, spec, examples):
    """Catches: the number of microbatches becoming a shape, outputs with other shardings than the inputs."""
    _, graphdef, params = tiny
    names = tuple(sorted(params))
    optimizer = make_optimizer(OptimConfig(), 10)
    update = make_sft_step(graphdef, optimizer, names)
    state = init_state(jax.tree.map(jnp.copy, params), optimizer, names)
    batches = [shard_batch(b, None) for b in pack_step(examples, spec())]
    state, _ = update(state, batches[:1])
    counter = RecompilationCounter()
    state, _ = update(state, batches * 2)
    assert counter.names == () and update.compiled_programs() == 3
    assert int(state.step) == 2


def test_frozen_groups_stay_and_carry_no_optimizer_state(tiny, spec, examples):
    """Catches: freezing that still allocates optimizer moments, or that still applies weight decay."""
    _, graphdef, params = tiny
    names = trainable_names(params, ("vision", "projector"))
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-2, weight_decay=0.5), 10)
    state = init_state(jax.tree.map(jnp.copy, params), optimizer, names)
    after, _ = make_sft_step(graphdef, optimizer, names)(
        state, [shard_batch(b, None) for b in pack_step(examples, spec())]
    )
    for name, value in after.params.items():
        changed = bool(np.any(np.asarray(value) != np.asarray(params[name])))
        assert changed == name.startswith("text."), name
    assert sum(x.size for x in jax.tree.leaves(after.opt_state)) < 2.1 * sum(params[n].size for n in names)
    with pytest.raises(ValueError, match="unknown group 'tower'"):
        trainable_names(params, ("tower",))


def test_weight_decay_spares_norms_and_biases(tiny):
    """Catches: a mask by rank, under which the stacked norms and biases decay like matrices."""
    _, _, params = tiny
    optimizer = make_optimizer(
        OptimConfig(learning_rate=0.1, weight_decay=0.5, warmup_ratio=0, schedule="constant"), 10
    )
    updates, _ = jax.jit(lambda p: optimizer.update(jax.tree.map(jnp.zeros_like, p), optimizer.init(p), p))(params)
    moved = {name for name, u in updates.items() if np.any(u)}
    assert moved == {name for name in params if name.endswith(("kernel", "embedding"))}


def test_learning_rate_warms_up_and_decays():
    """Catches: a first step of rate 0, a warm-up counted in the wrong unit, a cosine that ends above 0."""
    rate = learning_rate_schedule(OptimConfig(learning_rate=1.0, warmup_ratio=0.1, schedule="cosine"), 100)
    values = np.array([float(rate(s)) for s in range(101)])
    assert 0 < values[0] < 0.1 and np.all(np.diff(values[:10]) > 0) and values[10] == 1.0
    assert np.all(np.diff(values[10:]) < 0) and values[100] == pytest.approx(0.0, abs=1e-7)
    constant = learning_rate_schedule(OptimConfig(learning_rate=1.0, warmup_ratio=0.0, schedule="constant"), 100)
    assert float(constant(0)) == float(constant(99)) == 1.0


def test_a_tiny_model_learns_its_examples(tiny, spec, examples):
    """Catches: an optimizer step in the wrong direction, or one that never reaches the weights."""
    _, graphdef, params = tiny
    names = tuple(sorted(params))
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-2, schedule="constant"), 60)
    losses = []
    state = init_state(jax.tree.map(jnp.copy, params), optimizer, names)
    sft_loop(
        state,
        (pack_step(examples, spec()) for _ in range(60)),
        make_sft_step(graphdef, optimizer, names),
        lambda step, metrics, _: losses.append(metrics["loss"]),
    )
    assert len(losses) == 60 and losses[0] > 3.5 and losses[-1] < 0.3


def test_errors_of_the_batch_source_reach_the_caller(tiny, step):
    """Catches: a loop that takes an error of its source for the end of the data."""

    def broken():
        yield from ()
        raise RuntimeError("no more data")

    with pytest.raises(RuntimeError, match="no more data"):
        sft_loop(None, broken(), step)


@pytest.mark.long
def test_one_and_eight_devices_give_the_same_losses_and_weights(tmp_path):
    """Catches: a mean per device, an image read from another device's embeddings, moments sharded unlike their weights."""
    results = {}
    for devices in (1, 8):
        out = tmp_path / f"{devices}.npz"
        env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        subprocess.run(
            [sys.executable, "-m", "tests.trainer.train_on_mesh", str(out)], check=True, env=env, cwd=ROOT, timeout=300
        )
        results[devices] = np.load(out)
    np.testing.assert_allclose(results[1]["losses"], results[8]["losses"], rtol=5e-6)
    for name in results[1].files:
        np.testing.assert_allclose(results[1][name], results[8][name], atol=2e-4, err_msg=name)
