"""Tests runs to which requests are added one by one: streams of requests, and requests that are cancelled.

Catches: all requests taken at once, a trajectory that is kept or returned twice, a cancelled request whose sequence or
sandbox session stays open, an answer of a cancelled tool request that ends the run.
"""

from __future__ import annotations

import pytest

from tests.rollout.rollout_cases import ANSWER, code, requests, scheduler
from tests.rollout.scripted_engine import Passing

NAMES = [f"q{i}" for i in range(200)]


def script(name: str, turn: int) -> str:
    return [code("print(1)"), ANSWER][turn]


def test_a_stream_takes_requests_as_the_engine_has_room_and_returns_each_once(tokenizer, client):
    rollout = scheduler(tokenizer, Passing(client), lambda name, turn: ANSWER)
    taken, finished = 0, []

    def source():
        nonlocal taken
        for request in requests(*NAMES):
            taken += 1
            yield request

    for index, trajectory in rollout.stream(source()):
        if not finished:
            assert taken < len(NAMES), "all requests were taken before the first trajectory ended"
        finished.append((index, trajectory.id))
    assert sorted(finished) == sorted(enumerate(NAMES))
    assert rollout.stats["trajectories"] == len(NAMES)


def test_a_cancelled_request_frees_its_sequence_and_returns_nothing(tokenizer, client):
    tools = Passing(client)
    rollout = scheduler(tokenizer, tools, script)
    run = rollout.open()
    indices = [run.add(request) for request in requests(*NAMES[:4])]
    run.step()  # turns are requested
    run.cancel(indices[1])
    run.cancel(indices[1])
    finished = {}
    while run.unfinished:
        finished |= dict(run.step())
    run.cancel(indices[0])  # finished: nothing to do
    run.close()
    assert sorted(finished) == [indices[0], *indices[2:]]
    run = rollout.open()
    again = run.add(requests(NAMES[1])[0])
    while run.unfinished:
        finished = dict(run.step())
    run.close()
    assert finished[again].id == NAMES[1]


def test_two_unfinished_requests_cannot_have_the_same_id(tokenizer, client):
    run = scheduler(tokenizer, Passing(client), script).open()
    request = requests(NAMES[0])[0]
    run.add(request)
    with pytest.raises(ValueError, match="running already"):
        run.add(request)
    run.close()
