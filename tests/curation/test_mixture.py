"""Tests the choice of rows by shares.

Catches: shares that are not met, a choice that depends on the order of rows, rows chosen twice, wrong shares accepted.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.config import ConfigError
from dv2_jax.curation.mixture import choose_rows, parse_mixture

GROUPS = {name: [f"{name}{i}" for i in range(count)] for name, count in (("a", 600), ("b", 100), ("c", 50))}


def test_the_scarcest_group_limits_the_total():
    chosen, counts = choose_rows(GROUPS, {"a": 0.6, "b": 0.3, "c": 0.1}, 0, 0)
    assert counts == {"a": 200, "b": 100, "c": 33} and len(chosen) == 333
    chosen, counts = choose_rows(GROUPS, {"a": 0.6, "b": 0.3, "c": 0.1}, 100, 0)
    assert counts == {"a": 60, "b": 30, "c": 10}


def test_absent_groups_leave_their_share_to_the_others():
    _, counts = choose_rows(GROUPS, {"a": 0.5, "d": 0.5}, 0, 0)
    assert counts == {"a": 600}


def test_without_shares_every_row_is_chosen_up_to_the_size():
    assert len(choose_rows(GROUPS, {}, 0, 0)[0]) == 750
    chosen, counts = choose_rows(GROUPS, {}, 75, 0)
    assert len(chosen) == 75 == sum(counts.values())


@given(st.integers(0, 5), st.integers(0, 300), st.booleans())
def test_the_choice_depends_on_ids_and_seed_alone(seed, size, with_shares):
    shares = {"a": 0.7, "c": 0.3} if with_shares else {}
    shuffled = {name: random.Random(size).sample(rows, len(rows)) for name, rows in reversed(GROUPS.items())}
    chosen, _ = choose_rows(GROUPS, shares, size, seed)
    assert chosen == choose_rows(shuffled, shares, size, seed)[0]
    assert len(set(chosen)) == len(chosen)


def test_paper_shares_sum_to_one_and_wrong_ones_are_refused():
    for kind in ("sft", "rl"):
        assert sum(parse_mixture(["paper"], "key", kind).values()) == pytest.approx(1)
    assert parse_mixture(["a=2", "b=6"], "key", "rl") == {"a": 0.25, "b": 0.75}
    for wrong in (["a"], ["a=-1"], ["a=nan"], ["=1"], ["a=1", "a=2"], ["paper", "a=1"]):
        with pytest.raises(ConfigError, match="key"):
            parse_mixture(wrong, "key", "rl")
