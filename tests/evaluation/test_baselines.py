"""Tests the guessing baseline and the refused tools."""

import pytest

from dv2_jax.agent.trajectory_builder import TrajectoryBuilder
from dv2_jax.data.question import Question
from dv2_jax.evaluation.baselines import RefusingTools, guessing_accuracy
from tools_service.client import ExecRequest, ImageSearchRequest, Status, TextSearchRequest


def _question(skill: str, answer: str, kind: str | None = None, **extra) -> Question:
    return Question(f"{skill}-{answer}", skill, "reason", "?", (), answer, meta={"kind": kind} if kind else {}, **extra)


def test_the_guess_is_the_commonest_answer_of_the_same_kind_of_question():
    train = [_question("plain", answer, "colour") for answer in ("red", "red", "blue")]
    train += [_question("plain", answer, "count") for answer in ("2", "2", "2", "3")]
    asked = [
        _question("plain", "red", "colour"),
        _question("plain", "blue", "colour"),
        _question("plain", "2", "count"),
    ]
    assert guessing_accuracy(asked, train) == {"overall": pytest.approx(2 / 3), "plain": pytest.approx(2 / 3)}


def test_an_unknown_kind_falls_back_on_its_skill_and_an_unknown_skill_on_nothing():
    train = [_question("plain", "red", "colour")]
    asked = [_question("plain", "red", "new"), _question("search", "red")]
    assert guessing_accuracy(asked, train) == {"overall": 0.5, "plain": 1.0, "search": 0.0}


def test_a_guess_is_checked_as_an_answer_would_be():
    """Catches string equality in place of the question's verifier."""
    train = [_question("reasoning", "3.50", verifier="number")]
    assert guessing_accuracy([_question("reasoning", "3.5", verifier="number")], train)["reasoning"] == 1.0


def test_refused_tools_answer_every_request_once_and_the_policy_reads_why(prompt_encoder, parts):
    tools = RefusingTools()
    tools.submit([ExecRequest("a", "s", "1", 1.0), TextSearchRequest("b", "x", 3)])
    tools.submit([ImageSearchRequest("c", b"", 3)])
    assert tools.pending() == 3
    results = tools.poll()
    assert [(r.request_id, r.kind, r.status) for r in results] == [
        ("a", "exec", Status.REFUSED),
        ("b", "text_search", Status.REFUSED),
        ("c", "image_search", Status.REFUSED),
    ]
    assert tools.poll() == [] and tools.pending() == 0

    builder = TrajectoryBuilder(prompt_encoder, _question("reasoning", "42"))
    builder.append_scripted_turn(parts.SUM)
    builder.append_tool_output(results[0])
    assert "tools are switched off" in builder.trajectory().turns[0].observation
