"""Tests limits per minute on a clock of our own. Catches: bursts above the limit, tokens that are never paid, endless waits."""

from __future__ import annotations

import pytest

from benchmarks.chat_server import ChatServer
from dv2_jax.endpoint import ChatEndpoint, RateLimit
from dv2_jax.endpoint.rate_limit import BURST_S, FIRST_TOKENS


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def send_times(limit: RateLimit, clock: Clock, count: int, used: int) -> list[float]:
    """Sends requests one after the other as soon as they may; returns the times."""
    times = []
    for _ in range(count):
        wait, reserved = limit.reserve()
        clock.now += wait
        times.append(clock.now)
        limit.settle(reserved, used)
    return times


def test_no_minute_has_more_requests_than_the_limit_and_a_short_burst():
    clock = Clock()
    times = send_times(RateLimit(60, clock=clock), clock, 300, 10)
    for start in times:
        assert sum(start <= time < start + 60 for time in times) <= 60 + BURST_S
    assert times[-1] - times[0] == pytest.approx(300 - BURST_S, abs=1), "no slower than the limit either"


def test_tokens_are_limited_by_what_replies_report():
    clock = Clock()
    used = 3_000
    times = send_times(RateLimit(0, 60_000, clock=clock), clock, 100, used)
    spent = times[-1] - times[0]
    assert spent == pytest.approx((100 * used - FIRST_TOKENS) / 1_000 - BURST_S, rel=0.05)


def test_a_pause_saves_up_no_more_than_a_burst():
    clock = Clock()
    limit = RateLimit(60, clock=clock)
    send_times(limit, clock, 3, 10)
    clock.now += 3_600
    times = send_times(limit, clock, 20, 10)
    assert sum(time == times[0] for time in times) <= BURST_S + 1


def test_a_limit_slower_than_the_burst_still_sends():
    clock = Clock()
    times = send_times(RateLimit(1, clock=clock), clock, 3, 10)
    assert [round(after - before) for before, after in zip(times, times[1:])] == [60, 60]


def test_without_limits_nothing_waits():
    assert RateLimit().reserve()[0] == 0.0
    with pytest.raises(ValueError, match="0 or more"):
        RateLimit(-1)


def test_the_client_keeps_its_limit():
    """600 per minute: after the burst of 50, every tenth of a second one."""
    server = ChatServer(lambda body, number: "yes")
    endpoint = ChatEndpoint(server.url, "served-model", rate=RateLimit(600))
    try:
        for number in range(60):
            endpoint.complete([{"role": "user", "content": str(number)}])
    finally:
        endpoint.close()
        server.close()
    assert server.times[-1] - server.times[0] >= 0.7
