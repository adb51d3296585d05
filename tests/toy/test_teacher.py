"""The scripted teacher at work: the default tasks can be solved, and what supervised learning is given to imitate.

Every trajectory here is made by the scheduler and a real tools service, as the cold start's are.
"""

from __future__ import annotations

import re

import pytest

from dv2_jax.agent.trajectory import Finish
from dv2_jax.config import Config
from dv2_jax.data.question import Question
from dv2_jax.rewards.rules import score
from dv2_jax.toy import tasks, teacher
from dv2_jax.toy.styles import CAREFUL, TIGHT, WIDE
from dv2_jax.toy.tasks import reasoning

HALF = re.compile(r"x, y, r = \d+, \d+, (\d+)$", re.MULTILINE)  # half side of a crop around a named place
QUERY = re.compile(r'"arguments": {"query": "([^"]+)"}')


@pytest.fixture(scope="module")
def careful(codec, tools):
    questions = list(tasks.generate("eval", 25, seed=5))
    return teacher.solve(questions, tools, codec, seed=0, habits=CAREFUL)


@pytest.fixture(scope="module")
def habitual(codec, tools):
    """Right trajectories with the default habits, by skill."""
    found: dict[str, list] = {skill: [] for skill in tasks.SKILLS}
    for trajectory in teacher.solve_all(list(tasks.generate("train", 60, seed=6)), tools, codec, seed=1):
        found[trajectory.question.skill].append(trajectory)
    return found


def first(trajectory) -> str:
    """The first turn whose tool did what was asked."""
    return next(turn.text for turn in trajectory.turns if turn.status == "OK")


def test_the_careful_teacher_answers_every_held_out_question(careful):
    """Finds a task that cannot be solved with the tools, and a tool that does not return what it should."""
    trajectories, failures = careful
    assert failures == {}
    wrong = [(t.question.text, t.question.answer, t.turns[-1].text) for t in trajectories if not teacher.is_right(t)]
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
    assert all(turn.status == "OK" for t in careful[0] for turn in t.turns[:-1])


def test_what_the_teacher_says_is_trained_and_what_the_tools_say_is_not(careful, codec):
    """The mask selects exactly the turns: a shifted mask would train observations, or drop the token that stops."""
    for trajectory in careful[0]:
        said, run = [], []
        for id_, trained in zip([*trajectory.token_ids, -1], [*trajectory.loss_mask, 0], strict=True):
            if trained:
                run.append(id_)
            elif run:
                said.append(codec.tokenizer.decode(i for i in run if i != codec.im_end))
                run = []
        assert said == [turn.text for turn in trajectory.turns]
        assert trajectory.finish is Finish.ANSWER and trajectory.token_ids[-1] == codec.im_end
        assert len(trajectory.token_ids) <= codec.agent_config.max_total_tokens


def test_a_careful_trajectory_earns_the_whole_reward(careful, codec):
    """But for the tenth that the released arithmetic takes from a right answer after a search."""
    for trajectory in careful[0]:
        text = trajectory.response_text(codec.tokenizer)
        parts = score(text, teacher.is_right(trajectory), trajectory.question.data_source, Config().reward)
        assert parts.total == pytest.approx(0.92 if trajectory.used_search else 1.0)


def test_perception_is_solved_with_tight_and_with_wide_crops(habitual):
    halves = [int(found[1]) for t in habitual["perception"] if (found := HALF.search(first(t)))]
    assert {half == TIGHT for half in halves} == {True, False} and set(halves) <= {TIGHT, WIDE}


def test_reasoning_is_solved_with_careful_and_with_hasty_code(habitual):
    programs = {"careful": 0, "hasty": 0}
    for trajectory in habitual["reasoning"]:
        meta = trajectory.question.meta
        kind = reasoning.BY_NAME[meta["kind"]]
        if kind.hasty:
            programs["careful"] += kind.code.format(**meta) in first(trajectory)
            programs["hasty"] += kind.hasty.format(**meta) in first(trajectory)
    assert min(programs.values()) > 0


def test_search_is_solved_with_exact_and_with_vague_queries(habitual):
    vague = [QUERY.search(first(t))[1] == t.question.meta["entity"] for t in habitual["search"]]
    assert set(vague) == {True, False}


def test_plain_questions_are_answered_with_and_without_a_needless_search(habitual):
    assert {t.used_search for t in habitual["plain"]} == {True, False}


def test_a_slip_is_followed_by_its_repair(habitual):
    """What teaches to go on after an error; the failed call really failed, in the sandbox or in the parser."""
    slips = []
    for trajectory in [t for found in habitual.values() for t in found]:
        for turn, following in zip(trajectory.turns, trajectory.turns[1:], strict=False):
            if turn.status == "ERROR" or turn.kind == "malformed":
                slips.append(turn)
                assert "Error" in turn.observation
                assert following.status == "OK"
    assert slips


def test_the_same_seed_makes_the_same_trajectories(codec, tools):
    """Ids and pictures both: the cold start's data can be made again."""
    questions = list(tasks.generate("train", 5, seed=9))
    runs = [teacher.solve(questions, tools, codec, seed)[0] for seed in (3, 3, 4)]
    ids = [[(t.token_ids, [p.digest for p in t.pictures]) for t in run] for run in runs]
    assert ids[0] == ids[1] != ids[2]


def test_what_the_index_does_not_hold_is_given_up_and_never_taught(codec, tools):
    meta = {"kind": "search", "entity": "Atlantis", "attribute": "capital"}
    question = Question("lost", "search", "search", "What is the capital of Atlantis?", (), "Poseidonis", meta=meta)
    (trajectory,), failures = teacher.solve([question], tools, codec, seed=0, habits=CAREFUL)
    assert "capital of Atlantis" in failures[trajectory.id]
    assert not teacher.is_right(trajectory)
    assert teacher.solve_all([question], tools, codec, seed=0, habits=CAREFUL) == []
