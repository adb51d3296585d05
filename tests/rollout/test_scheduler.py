"""Tests rollouts with a scripted policy and the real tools service.

Catches: an observation appended to the wrong trajectory, ids that differ between engine and trajectory, a request that
is answered twice or never, an infrastructure failure shown to the policy, a barrier between turns, an exceeded budget,
sandbox sessions that are not closed.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dv2_jax.agent.trajectory import Finish
from dv2_jax.rollout import scheduler as rollout_scheduler
from dv2_jax.rollout.outcome import TrajectoryStats
from dv2_jax.rollout.scheduler import RolloutRequest
from tests.rollout.rollout_cases import AGENT, ANSWER, IMAGE_SEARCH, TOOLS, code, question, requests, scheduler, search
from tests.rollout.scripted_engine import Doubling, Failing, Passing, Swallowing, replaced
from tools_service.client import Status

SCRIPTS = {
    "calculates": [code("a = 40\nprint(image_1.size)"), code("a + 2"), ANSWER],
    "crops": [code("image_1.crop((0, 0, 40, 32))"), ANSWER],
    "searches": [search("how high is Mount Kea"), ANSWER],
    "looks": [IMAGE_SEARCH, ANSWER],
    "raises": [code("1 / 0"), ANSWER],
    "malformed": ["<think>x</think>\n<tool_call>\n{name: search}\n</tool_call>", ANSWER],
    "aimless": ["<think>hmm</think>", ANSWER],
    "never answers": [code("print(1)")] * 9,
}


def script(name: str, turn: int) -> str:
    return SCRIPTS[name][turn]


def test_every_kind_of_turn_gets_its_own_observation(tokenizer, client):
    tools = Passing(client)
    rollout = scheduler(tokenizer, tools, script)
    finished, turns = [], []
    trajectories = rollout.run(
        requests(*SCRIPTS),
        on_finish=lambda t: finished.append(t.id),
        on_turn=lambda t, turn: turns.append((t.id, turn)),
    )
    by_name = {trajectory.id: trajectory for trajectory in trajectories}
    assert list(by_name) == list(SCRIPTS) and sorted(finished) == sorted(SCRIPTS)

    observed = {name: [turn.observation for turn in t.turns] for name, t in by_name.items()}
    assert "(80, 64)" in observed["calculates"][0] and "42" in observed["calculates"][1]
    assert by_name["crops"].turns[0].images and "<image>" in observed["crops"][0]
    assert "4207" in observed["searches"][0]
    assert "red house" in observed["looks"][0] and by_name["looks"].turns[0].images
    assert "ZeroDivisionError" in observed["raises"][0]
    assert "Error" in observed["malformed"][0] and "Error" in observed["aimless"][0]
    assert [t.finish for t in trajectories] == [Finish.ANSWER] * 7 + [Finish.MAX_TURNS]
    assert len(by_name["never answers"].turns) == AGENT.max_turns
    assert [(t.id, turn) for t in trajectories for turn in t.turns] == sorted(
        turns, key=lambda item: list(SCRIPTS).index(item[0])
    )

    # A tool call in the last allowed turn is not executed.
    assert len(tools.sent) == 2 + 1 + 1 + 1 + 1 + (AGENT.max_turns - 1)
    assert sorted(tools.sent) == sorted(tools.received) and len(set(tools.sent)) == len(tools.sent)
    assert max(tools.batches) > 3, "requests of one round leave together"
    sessions = {name.split(":")[1] for name in tools.closed}
    assert sessions == {"calculates", "crops", "raises", "never_answers"}
    assert rollout.stats["tool_requests"] == len(tools.sent) and rollout.stats["tool_exec_error"] == 1


def test_the_engine_was_given_exactly_the_ids_of_the_trajectory(tokenizer, client):
    rollout = scheduler(tokenizer, client, script)
    trajectories = rollout.run(requests(*SCRIPTS))
    engine = rollout.engine
    assert not engine.ids
    for trajectory in trajectories:
        (name,) = (name for name in engine.released if name.trajectory_id == trajectory.id)
        assert engine.released[name] == trajectory.token_ids
        sampled = [v for v, mask in zip(trajectory.versions, trajectory.loss_mask, strict=True) if mask]
        assert set(sampled) == {engine.version}
        assert trajectory.sampled_tokens == sum(logprob == -0.5 for logprob in trajectory.logprobs)


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.SESSION_LOST, Status.CANCELLED])
def test_infrastructure_failures_restart_the_trajectory_and_are_never_shown(tokenizer, client, status):
    tools = Failing(client, {"calculates", "searches"}, TOOLS.retries, status)
    rollout = scheduler(tokenizer, tools, script)
    trajectories = rollout.run(requests("calculates", "crops", "searches"))
    assert [t.finish for t in trajectories] == [Finish.ANSWER] * 3
    assert not any(t.dropped for t in trajectories)
    for trajectory in trajectories:
        assert "machine is gone" not in trajectory.response_text(tokenizer)
        assert len(trajectory.turns) == len(SCRIPTS[trajectory.id])
    assert rollout.stats["retries"] == 2 * TOOLS.retries and rollout.stats["dropped"] == 0
    assert sorted(tools.sent) == sorted(tools.received)


def test_a_trajectory_that_keeps_failing_is_dropped_and_the_others_are_not(tokenizer, client):
    tools = Failing(client, {"calculates"}, TOOLS.retries + 1, Status.UNAVAILABLE)
    rollout = scheduler(tokenizer, tools, script)
    lost, kept = rollout.run(requests("calculates", "crops"))
    assert (lost.finish, lost.dropped) == (Finish.LOST, True)
    assert (kept.finish, kept.dropped) == (Finish.ANSWER, False)
    assert rollout.stats["dropped"] == 1
    assert not rollout.engine.ids, "all sequences were released"


def test_a_question_that_cannot_be_encoded_costs_no_other_trajectory(tokenizer, client):
    """Catches one bad image that ends the rollout of a batch."""
    rollout = scheduler(tokenizer, client, script)
    good, bad = requests("calculates", "crops"), requests("searches", "looks")
    bad = [replaced(request, question=replaced(request.question, images=(b"no image",))) for request in bad]
    finished = []
    trajectories = rollout.run([bad[0], good[0], bad[1], good[1]], on_finish=lambda t: finished.append(t.id))
    assert [t.id for t in trajectories] == ["searches", "calculates", "looks", "crops"]
    assert [t.dropped for t in trajectories] == [True, False, True, False] and len(finished) == 4
    assert "cannot read an image" in trajectories[0].row_error and not trajectories[1].row_error
    assert rollout.stats["dropped"] == 2 and not rollout.engine.ids
    stats = [TrajectoryStats.from_trajectory(t) for t in (trajectories[0], trajectories[2])]
    assert all(s.row_failed and s.loss_tokens == 0 for s in stats)
    assert [t.dropped for t in rollout.run(bad)] == [True, True], "nothing is left to run"


def test_a_request_that_times_out_ends_and_its_late_result_is_ignored(tokenizer, client):
    rollout = scheduler(tokenizer, Swallowing(client), script, tools=replaced(TOOLS, request_timeout_s=0.5))
    (trajectory,) = rollout.run(requests("calculates"))
    assert trajectory.finish is Finish.ANSWER
    assert rollout.stats["expired"] == rollout.stats["retries"] == 1


def test_a_request_is_lost_after_its_time_and_not_later(tokenizer, client, monkeypatch):
    """Catches a timeout that is applied twice, one after the other."""
    now, sent = [0.0], []

    class Ticking(Swallowing):
        def submit(self, requests):
            sent.append(now[0])
            super().submit(requests)

        def poll(self, timeout_s=0.0):
            now[0] += 1.0 if not self.done and len(sent) == 1 else 0.0
            return super().poll(timeout_s)

    rollout = scheduler(tokenizer, Ticking(client), script, tools=replaced(TOOLS, request_timeout_s=60.0))
    monkeypatch.setattr(rollout_scheduler, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    rollout.run(requests("calculates"))
    assert rollout.stats["expired"] == 1 and sent[0] == 0 and 60 < sent[1] <= 62


def test_a_request_that_is_answered_twice_is_an_error(tokenizer, client):
    rollout = scheduler(tokenizer, Doubling(client), script)
    with pytest.raises(RuntimeError, match="not open"):
        rollout.run(requests("searches"))
    assert not rollout.engine.ids


def test_nobody_waits_for_a_slow_tool_of_another_trajectory(tokenizer, client):
    finished = []
    slow = {**SCRIPTS, "slow": [code("import time; time.sleep(2)"), ANSWER]}
    rollout = scheduler(tokenizer, client, lambda name, turn: slow[name][turn])
    rollout.run(requests("slow", "calculates", "searches", "never answers"), on_finish=lambda t: finished.append(t.id))
    assert finished[-1] == "slow"
    assert rollout.stats["tool_latency_s_max"] >= 2


def test_a_prompt_without_room_for_an_answer_never_reaches_the_engine(tokenizer, client):
    rollout = scheduler(tokenizer, client, script, agent=replaced(AGENT, max_total_tokens=20))
    (trajectory,) = rollout.run(requests("crops"))
    assert trajectory.finish is Finish.MAX_TOKENS and not trajectory.sampled_tokens
    assert rollout.engine.released == {next(iter(rollout.engine.released)): []}


def test_an_observation_that_does_not_fit_ends_the_trajectory_with_its_own_words(tokenizer, client):
    long = {"long": [code("print('word ' * 900)"), ANSWER]}
    rollout = scheduler(tokenizer, client, lambda name, turn: long[name][turn])
    (trajectory,) = rollout.run(requests("long"))
    assert trajectory.finish is Finish.MAX_TOKENS
    assert trajectory.loss_mask[-1] == 1 and trajectory.turns[0].status is Status.OK


def test_image_search_without_an_image_is_an_observation_and_no_request(tokenizer, client):
    tools = Passing(client)
    rollout = scheduler(tokenizer, tools, script)
    (trajectory,) = rollout.run([RolloutRequest(question(0, num_images=0), "looks", 0)])
    assert trajectory.finish is Finish.ANSWER
    assert "no picture" in trajectory.turns[0].observation and not tools.sent


def test_two_trajectories_of_one_name_are_refused(tokenizer, client):
    with pytest.raises(ValueError, match="must differ"):
        scheduler(tokenizer, client, script).run(requests("crops", "crops"))


POISONED = {
    "half of a surrogate pair": '{"name": "search", "arguments": {"query": "a \\ud83d"}}',
    "the character NUL": '{"name": "search", "arguments": {"query": "a \\u0000 b"}}',
    "must be a string": '{"name": "search", "arguments": {"query": 7}}',
    "'query'": '{"name": "search", "arguments": ["a"]}',
    "parameters for image search": '{"name": "image_search", "arguments": {}}',
    "tool call name": '{"name": "\\ud83d"}',
    "the limit is 4096": '{"name": "search", "arguments": {"query": "%s"}}' % ("a " * 4000),
}  # fmt: skip


def test_a_poisoned_call_is_an_observation_of_its_trajectory_and_the_batch_goes_on(tokenizer, client):
    """Catches a call that cannot be encoded, or that the service refuses, and takes the others of its batch along."""
    scripts = {
        name: [f"<think>x</think>\n<tool_call>\n{call}\n</tool_call>", ANSWER] for name, call in POISONED.items()
    } | {"good": SCRIPTS["searches"]}
    agent = replaced(AGENT, max_turn_tokens=20_000, max_total_tokens=40_000)
    rollout = scheduler(tokenizer, client, lambda name, turn: scripts[name][turn], agent=agent)
    for trajectory in rollout.run(requests(*scripts)):
        assert trajectory.finish is Finish.ANSWER
        wanted = "4207" if trajectory.id == "good" else trajectory.id
        assert wanted in trajectory.turns[0].observation
    assert rollout.stats["retries"] == rollout.stats["dropped"] == 0


def test_the_id_of_a_question_may_hold_any_characters(tokenizer, client):
    """Catches a sandbox session named by the question, which the service refuses for spaces, scripts and length."""
    names = ["with space", "图像:1", "a" * 500, "", "x/y@z"]
    rollout = scheduler(tokenizer, client, lambda _, turn: SCRIPTS["calculates"][turn])
    for trajectory in rollout.run([RolloutRequest(question(), name or "empty", i) for i, name in enumerate(names)]):
        assert "42" in trajectory.turns[1].observation
