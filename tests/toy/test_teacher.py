"""Tests the scripted teacher: it solves the default tasks, and its mixture of styles occurs in the training data.

The scheduler and a real tools service generate every trajectory here, as for the cold-start data.
"""

from __future__ import annotations

import re

import pytest

from dv2_jax.agent.trajectory import Finish
from dv2_jax.config import Config, ToolsConfig
from dv2_jax.data.question import Question
from dv2_jax.evaluation.baselines import RefusingTools
from dv2_jax.rewards.rules import score_response
from dv2_jax.toy import tasks, teacher
from dv2_jax.toy.styles import CAREFUL, TIGHT, WIDE
from dv2_jax.toy.tasks import reasoning
from tools_service.client import ExecRequest
from tools_service.common.status import Status

HALF = re.compile(r"x, y, r = \d+, \d+, (\d+)$", re.MULTILINE)  # half side of a crop around a given position
QUERY = re.compile(r'"arguments": {"query": "([^"]+)"}')


@pytest.fixture(scope="module")
def careful(prompt_encoder, tools):
    questions = list(tasks.make_questions("eval", 25, seed=5))
    return teacher.demonstrate_all(questions, tools, prompt_encoder, seed=0, style_mix=CAREFUL)


@pytest.fixture(scope="module")
def mixed(prompt_encoder, tools):
    """Returns correct trajectories with the default mixture of styles, by skill."""
    found: dict[str, list] = {skill: [] for skill in tasks.SKILLS}
    for trajectory in teacher.correct_demonstrations(
        list(tasks.make_questions("train", 60, seed=6)), tools, prompt_encoder, seed=1
    ):
        found[trajectory.question.skill].append(trajectory)
    return found


def first(trajectory) -> str:
    """Returns the first turn whose tool call succeeded."""
    return next(turn.text for turn in trajectory.turns if turn.status is Status.OK)


def test_the_careful_teacher_answers_every_held_out_question(careful):
    """Catches a task that cannot be solved with the tools, and a tool that returns wrong output."""
    trajectories, failures = careful
    assert failures == {}
    wrong = [
        (t.question.text, t.question.answer, t.turns[-1].text)
        for t in trajectories
        if not teacher.has_correct_answer(t)
    ]
    assert len(trajectories) == 25 and wrong == []


def test_a_careful_trajectory_takes_the_tools_that_its_skill_needs_and_no_other(careful):
    kinds = {skill: {tuple(turn.kind for turn in t.turns) for t in careful[0] if t.question.skill == skill}
             for skill in tasks.SKILLS}  # fmt: skip
    assert kinds == {
        "perception": {("code", "answer")},
        "reasoning": {("code", "answer")},
        "search": {("search", "answer")},
        "integration": {("image_search", "search", "code", "answer"), ("code", "search", "code", "answer")},
        "plain": {("answer",)},
    }
    assert all(turn.status is Status.OK for t in careful[0] for turn in t.turns[:-1])


def test_the_turns_of_the_teacher_are_trained_and_observations_are_not(careful, prompt_encoder):
    """Catches a shifted loss mask, which would train observations or drop the stop token."""
    for trajectory in careful[0]:
        runs, run = [], []
        for id_, trained in zip([*trajectory.token_ids, -1], [*trajectory.loss_mask, 0], strict=True):
            if trained:
                run.append(id_)
            elif run:
                runs.append(prompt_encoder.tokenizer.decode(i for i in run if i != prompt_encoder.im_end))
                run = []
        assert runs == [turn.text for turn in trajectory.turns]
        assert trajectory.finish is Finish.ANSWER and trajectory.token_ids[-1] == prompt_encoder.im_end
        assert len(trajectory.token_ids) <= prompt_encoder.agent_config.max_total_tokens


def test_a_careful_trajectory_earns_the_full_reward(careful, prompt_encoder):
    """Expects 1.0, or 0.92 after a search: the released reward subtracts a tenth of the accuracy term there."""
    for trajectory in careful[0]:
        text = trajectory.response_text(prompt_encoder.tokenizer)
        parts = score_response(
            text, teacher.has_correct_answer(trajectory), trajectory.question.data_source, Config().reward
        )
        assert parts.total == pytest.approx(0.92 if trajectory.used_categories()["search"] else 1.0)


def test_perception_is_solved_with_tight_and_with_wide_crops(mixed):
    halves = [int(found[1]) for t in mixed["perception"] if (found := HALF.search(first(t)))]
    assert {half == TIGHT for half in halves} == {True, False} and set(halves) <= {TIGHT, WIDE}


def test_reasoning_is_solved_with_complete_and_with_incomplete_code(mixed):
    programs = {"careful": 0, "hasty": 0}
    for trajectory in mixed["reasoning"]:
        meta = trajectory.question.meta
        kind = reasoning.KIND_BY_NAME[meta["kind"]]
        if kind.incomplete_code:
            programs["careful"] += kind.code.format(**meta) in first(trajectory)
            programs["hasty"] += kind.incomplete_code.format(**meta) in first(trajectory)
    assert min(programs.values()) > 0


def test_search_is_solved_with_exact_and_with_broad_queries(mixed):
    broad_query = [QUERY.search(first(t))[1] == t.question.meta["entity"] for t in mixed["search"]]
    assert set(broad_query) == {True, False}


def test_plain_questions_are_answered_with_and_without_a_needless_search(mixed):
    assert {t.used_categories()["search"] for t in mixed["plain"]} == {True, False}


def test_an_error_is_followed_by_a_retry(mixed):
    """Catches scripted errors that do not fail in the sandbox or the parser, and retries that do not succeed."""
    failed_turns = []
    for trajectory in [t for found in mixed.values() for t in found]:
        for turn, following in zip(trajectory.turns, trajectory.turns[1:], strict=False):
            if turn.status is Status.ERROR or turn.kind == "malformed":
                failed_turns.append(turn)
                assert "Error" in turn.observation
                assert following.status is Status.OK
    assert failed_turns


def test_the_same_seed_gives_the_same_trajectories(prompt_encoder, tools):
    """Catches cold-start data that cannot be reproduced, in ids or images."""
    questions = list(tasks.make_questions("train", 5, seed=9))
    runs = [teacher.demonstrate_all(questions, tools, prompt_encoder, seed)[0] for seed in (3, 3, 4)]
    ids = [[(t.token_ids, [p.digest for p in t.images]) for t in run] for run in runs]
    assert ids[0] == ids[1] != ids[2]


def test_a_question_that_the_index_cannot_answer_gives_no_demonstration(prompt_encoder, tools):
    meta = {"kind": "search", "entity": "Atlantis", "attribute": "capital"}
    question = Question("lost", "search", "search", "What is the capital of Atlantis?", (), "Poseidonis", meta=meta)
    (trajectory,), failures = teacher.demonstrate_all([question], tools, prompt_encoder, seed=0, style_mix=CAREFUL)
    assert "capital of Atlantis" in failures[trajectory.id]
    assert not teacher.has_correct_answer(trajectory)
    assert teacher.correct_demonstrations([question], tools, prompt_encoder, seed=0, style_mix=CAREFUL) == []


def test_the_time_limit_of_a_cell_is_that_of_the_configuration(prompt_encoder):
    """Catches: cold-start generation with default limits whatever `config.tools` says."""
    asked = []

    class RecordingTools(RefusingTools):
        def submit(self, requests):
            asked.extend(requests)
            super().submit(requests)

    question = tasks.make_questions("train", 1, 0, ("perception",))[0]
    config = ToolsConfig(cell_timeout_s=3.5)
    teacher.demonstrate_all([question], RecordingTools(), prompt_encoder, 0, CAREFUL, config)
    assert {request.timeout_s for request in asked if isinstance(request, ExecRequest)} == {3.5}
