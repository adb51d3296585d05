"""Tests the diagnostics of tool use against counts by hand and against properties."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dv2_jax.evaluation.analysis.answer_rows import AnswerRow, read_run
from dv2_jax.evaluation.analysis.tool_benefit import benefit_table, benefits, tool_benefit
from tests.evaluation.analysis.hand_made import answered, crop, record, said, write_run


def row(name, right, calls=0, sample=0):
    value = None if right is None else float(right)
    return AnswerRow("s", "b", None, name, sample, "k", "", "", value, name, {}, calls, 0, 1, None)


def measured(with_tools, without):
    return tool_benefit("b", "policy", "no tools", with_tools, without)


def test_the_definitions_with_one_answer_each():
    """Catches gain and harm exchanged, and easy questions with a call counted as right decisions."""
    with_tools = [row("a", 1, 2), row("b", 1, 1), row("c", 0, 1), row("d", 0), row("e", 1), row("f", None, 1)]
    without = [row("a", 0), row("b", 0), row("c", 1), row("d", 0), row("e", 1), row("f", 0), row("g", 1)]
    result = measured(with_tools, without)
    assert result.ma_tool.value == pytest.approx(2 / 3) and result.ma_tool.n == 3  # a, b called; d did not
    assert result.ma_text.value == 0.5 and result.ma_text.n == 2  # e without a call, c with one
    assert result.ma_mean.value == pytest.approx((2 / 3 + 0.5) / 2)
    assert (result.gain.value, result.harm.value, result.gain.n) == (2 / 5, 1 / 5, 5)
    assert result.delta.value == pytest.approx(1 / 5)
    assert (result.gains, result.harms) == (("a", "b"), ("c",))


def test_with_five_samples_questions_between_easy_and_hard_are_left_out():
    without = [row("a", i < 1, sample=i) for i in range(5)]  # 1 of 5: hard
    without += [row("b", i < 2, sample=i) for i in range(5)]  # neither
    without += [row("c", i < 4, sample=i) for i in range(5)]  # 4 of 5: easy
    with_tools = [row("a", 1, 1), row("b", 1, 1), row("c", 0)]
    result = measured(with_tools, without)
    assert (result.ma_tool.value, result.ma_tool.n, result.ma_text.value, result.ma_text.n) == (1.0, 1, 1.0, 1)
    assert result.gain.value == pytest.approx((0.8 + 0.6 + 0) / 3) and result.harm.value == pytest.approx(0.8 / 3)
    assert result.samples == (1, 5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 2)), min_size=2, max_size=30))
def test_the_effect_of_tools_is_the_difference_of_the_accuracies(answers):
    with_tools = [row(str(i), right, calls) for i, (right, _, calls) in enumerate(answers)]
    without = [row(str(i), right) for i, (_, right, _) in enumerate(answers)]
    result = measured(with_tools, without)
    difference = sum(right - other for right, other, _ in answers) / len(answers)
    assert result.delta.value == pytest.approx(difference, abs=1e-12)
    assert result.delta.value == pytest.approx(result.gain.value - result.harm.value, abs=1e-12)
    assert result.delta.interval[0] - 1e-12 <= difference <= result.delta.interval[1] + 1e-12
    for estimate in (result.ma_tool, result.ma_text, result.gain, result.harm):
        if estimate.value is not None:
            low, high = estimate.interval
            assert 0 <= low <= estimate.value + 1e-12 and estimate.value - 1e-12 <= high <= 1


def refused(name, right):
    return record(name, crop(status="refused", images=()), said(), right=right, answer=answered(name))


def test_the_reference_is_the_same_policy_without_tools(tmp_path):
    """Catches a comparison of one checkpoint with another one's answers without tools."""
    used = [record("a", crop(), said(), right=True, answer=answered("a"))]
    none = [record("a", said(), right=False, answer=answered("a", tools=[]))]
    made = {"base": used, "base-none": none, "evaluate": used, "evaluate-none": none, "no_tools": [refused("a", False)]}
    found = benefits(read_run(write_run(tmp_path, made)))
    assert [(one.policy, one.reference) for one in found] == [
        ("base", "base-none"), ("evaluation", "evaluate-none"), ("evaluation", "no tools"),
    ]  # fmt: skip


def test_another_run_is_the_reference(tmp_path):
    used = [record("a", crop(), said(), right=True, answer=answered("a")), record("x", crop(), said(), right=True)]
    run = read_run(write_run(tmp_path / "one", {"evaluate": used}))
    other = read_run(write_run(tmp_path / "two", {"evaluate": [record("a", said(), answer=answered("a"))]}))
    (result,) = benefits(run, other)
    assert (result.gain.value, result.gain.n) == (1.0, 1)
    assert [row["questions"] for row in benefit_table([result]).dicts()] == [1, 0, 1, 1, 1, 1]
    assert benefits(run) == []
