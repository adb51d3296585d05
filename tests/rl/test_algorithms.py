"""Tests of the algorithm presets, and of losses, estimators and aggregations from outside the package."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from dv2_jax.config import ConfigError, RLConfig
from dv2_jax.rl.advantage_registry import ADVANTAGES, advantage, compute_advantages
from dv2_jax.rl.aggregation import AGGREGATIONS, aggregation
from dv2_jax.rl.algorithms import describe_algorithm, resolve_algorithm
from dv2_jax.rl.batch import make_minibatches
from dv2_jax.rl.loss_registry import POLICY_LOSSES, policy_loss
from dv2_jax.rl.objective import make_objective
from tests.rl.test_batch import trajectory


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Undoes what a test registers."""
    for registry in (POLICY_LOSSES, ADVANTAGES, AGGREGATIONS):
        monkeypatch.setattr(registry, "entries", {name: registry.get(name) for name in registry.names()})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dapo", ("ppo_clip", "grpo", "token_mean", 0.2, 0.3, 3.0)),
        ("grpo", ("ppo_clip", "grpo", "sequence_mean", 0.2, 0.2, 0.0)),
        ("dr_grpo", ("ppo_clip", "dr_grpo", "sequence_sum", 0.2, 0.2, 0.0)),
        ("deepeyesv2", ("ppo_clip", "grpo", "sequence_mean", 0.2, 0.2, 3.0)),
        ("released", ("ppo_clip", "grpo", "sequence_mean", 0.2, 0.2, 3.0)),
    ],
)
def test_an_algorithm_sets_the_fields_that_are_not_set(name, expected):
    """Catches: a preset that changes nothing, and an alias with other values."""
    found = resolve_algorithm(RLConfig(algorithm=name))
    assert (
        found.loss,
        found.advantage,
        found.aggregation,
        found.clip_low,
        found.clip_high,
        found.dual_clip,
    ) == expected
    assert found.algorithm == ("deepeyesv2" if name == "released" else name)
    assert resolve_algorithm(found) == found


@pytest.mark.parametrize("name", ["dapo", "released", "gspo", "rloo"])
def test_what_the_user_sets_is_kept(name):
    """Catches: an explicit value that equals a default of another algorithm and is replaced by the preset's."""
    chosen = {
        "loss": "cispo", "advantage": "batch", "aggregation": "token_mean", "clip_low": 0.0, "clip_high": 0.3,
        "dual_clip": 0.0,
    }  # fmt: skip
    for field, value in chosen.items():
        found = resolve_algorithm(RLConfig(algorithm=name, **{field: value}))
        assert getattr(found, field) == value
    resolved = resolve_algorithm(RLConfig(algorithm=name, **chosen))
    assert describe_algorithm(resolved).endswith(
        "loss cispo, advantage batch, aggregation token_mean, clip_low 0.0, clip_high 0.3, dual_clip 0.0,"
        " kl_coefficient 0.0"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "gpso"}, "rl.loss: 'gpso' is none of cispo, gspo, .*; did you mean 'gspo'"),
        ({"advantage": "gae"}, "rl.advantage: 'gae' is none of batch, dr_grpo, grpo, rloo"),
        ({"aggregation": "mean"}, "rl.aggregation: 'mean' is none of token_mean"),
        ({"loss": "no_such_package:loss"}, "rl.loss: cannot import 'no_such_package:loss'"),
        ({"advantage": "math:pi"}, "rl.advantage: 'math:pi' is a float, not a function"),
        ({"loss_options": ("temperature=2",)}, "rl.loss_options: ppo_clip has no option 'temperature' .known: none"),
        ({"loss": "sapo", "loss_options": ("temperature_neg=hot",)}, "'temperature_neg=hot' is not NAME=NUMBER"),
        ({"loss": "sapo", "loss_options": ("temperature_neg=1", "temperature_neg=2")}, "is given twice"),
    ],
)
def test_an_unknown_name_is_refused_with_its_key(fields, message):
    """Catches: a misspelled loss that fails after the first rollout, or an option that is silently ignored."""
    with pytest.raises(ConfigError, match=message):
        resolve_algorithm(RLConfig(**fields))


def tiny_loss(config):
    """Return the loss of two tokens with log-probs -1 and -2, advantage 2 and weight 1, divided by 4."""
    two = jnp.full((1, 2), 2.0)
    logprobs = jnp.array([[-1.0, -2.0]])
    value, metrics = make_objective(config)(logprobs, logprobs, two, two / 2, jnp.ones((1, 2), int), 4.0)
    return float(value), metrics


def test_a_registered_function_of_each_kind_is_used():
    """Catches: a registry that only knows the package's own functions."""

    @policy_loss("squared")
    def squared(tokens, config, *, scale=1.0):
        return scale * tokens.advantages * tokens.logprobs**2, {"small": tokens.logprobs > -1.5}

    @advantage("reward")
    def reward(rewards, groups):
        return rewards

    @aggregation("sum")
    def total(tokens, config):
        return np.full(len(tokens), 0.5), 1.0

    config = RLConfig(loss="squared", loss_options=("scale=3",), advantage="reward", aggregation="sum")
    value, metrics = tiny_loss(config)
    assert value == pytest.approx(3 * 2 * (1 + 4) / 4) and metrics["small"].tolist() == [[True, False]]
    assert compute_advantages(config.advantage, [0.25, 0.5, 9.0], [0, 0, 1]).tolist() == [0.25, 0.5, 0.0]
    (part,) = make_minibatches([trajectory(4), trajectory(6)], [0.0, 1.0], config)
    assert part.denominator == 1.0 and [e.weight for e in part.examples] == [2.0, 3.0]


def test_an_import_path_needs_no_registration(monkeypatch):
    """Catches: a loss from outside whose trajectories without advantage are dropped although it needs them."""
    module = types.ModuleType("my_rl")
    module.entropy_like = lambda tokens, config: (-tokens.logprobs, {})
    module.ranks = lambda rewards, groups: np.argsort(np.argsort(rewards)).astype(float)
    module.by_count = lambda tokens, config: (np.ones(len(tokens)), float(len(tokens)))
    monkeypatch.setitem(sys.modules, "my_rl", module)
    config = RLConfig(loss="my_rl:entropy_like", advantage="my_rl:ranks", aggregation="my_rl:by_count")
    assert tiny_loss(config)[0] == pytest.approx(3 / 4)
    assert compute_advantages(config.advantage, [0.5, 0.1, 0.3], [0, 0, 0]).tolist() == [2.0, 0.0, 1.0]
    (part,) = make_minibatches([trajectory(4), trajectory(6)], [0.0, 1.0], config)
    assert part.denominator == 2.0 and [e.weight for e in part.examples] == [4.0, 6.0]


def test_an_estimator_from_outside_is_checked(monkeypatch):
    """Catches: an advantage of the wrong shape or NaN, which would spoil the weights."""
    module = types.ModuleType("my_rl")
    module.short = lambda rewards, groups: rewards[:1]
    module.nan = lambda rewards, groups: rewards * np.nan
    monkeypatch.setitem(sys.modules, "my_rl", module)
    with pytest.raises(ValueError, match=r"my_rl:short returned shape \(1,\) for 2 trajectories"):
        compute_advantages("my_rl:short", [0.0, 1.0], [0, 0])
    with pytest.raises(ValueError, match="my_rl:nan returned the advantage nan"):
        compute_advantages("my_rl:nan", [0.0, 1.0], [0, 0])


def test_a_name_is_registered_once():
    """Catches: two packages whose losses replace each other, depending on the order of imports."""
    with pytest.raises(ValueError, match="'gspo' is registered already, by dv2_jax.rl.losses.gspo.gspo"):
        policy_loss("gspo")(lambda tokens, config: (tokens.logprobs, {}))
