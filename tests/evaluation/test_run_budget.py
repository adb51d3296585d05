"""Tests the limits of an evaluation."""

import pytest

from dv2_jax.config import Config, ConfigError, EvalConfig
from dv2_jax.evaluation.run_budget import Budget


def test_costs_add_up_until_the_limit_is_reached():
    """Catches a limit that stops before it is reached, and unknown costs that stop a run."""
    budget = Budget(max_cost=1.0, max_hours=0)
    for cost in (0.4, None, 0.5):
        budget.add(cost)
        assert not budget.is_reached() and not budget.reason
    budget.add(0.2)
    assert budget.is_reached()
    assert budget.reason.startswith("stopped at a cost of 1.1 (eval.max_cost = 1): every answer is stored")


def test_hours_count_from_the_start():
    now = [100.0]
    budget = Budget(max_cost=0, max_hours=2, clock=lambda: now[0])
    now[0] += 7199
    assert not budget.is_reached()
    now[0] += 1
    assert budget.is_reached() and "2.00 hours" in budget.reason
    now[0] = 0  # once reached, it stays reached: all hosts and loops stop
    assert budget.is_reached()


def test_no_limit_is_the_default():
    budget = Budget.of_run(Config())
    budget.add(1e9)
    assert not budget.is_reached()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_cost": 5.0}, "eval.max_cost = 5 needs prices: set --config.eval.prices=FILE"),
        ({"max_hours": -1.0}, "eval.max_hours = -1: use a positive number"),
    ],
)
def test_limits_that_cannot_hold_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Budget.of_run(Config(eval=EvalConfig(**settings)))
