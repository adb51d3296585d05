"""Tests the HTTP transport against misbehaving providers: errors, retries, limits and secrecy of the key."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import json
import logging
import socket
import time
import tracemalloc

import pytest
from pydantic import SecretStr

from tests.tools_service.search.search_site import Site, bomb, drip, flood, hang, replies_with, reset
from tools_service.search.http.circuit_breaker import CircuitBreaker, CircuitOpen
from tools_service.search.http.request import RetryPolicy
from tools_service.search.http.transport import Transport
from tools_service.search.provider import BadQuery, SearchError
from tools_service.search.providers.web import WebSearch

KEY = "k3y-0f-the-account-9876543210"
GOOD = {
    "searchParameters": {"q": "heron", "type": "search"},
    "organic": [{"title": "Heron", "link": "https://example.org/heron", "snippet": "A bird.", "position": 1}],
}


def search(url: str, *queries: str, **policy):
    """Searches a Serper-like provider; returns the results or SearchError of each query, and the transport."""

    async def ask():
        transport = Transport("serper", RetryPolicy(**{"attempts": 1, "rate": 1000} | policy))
        provider = WebSearch("serper", transport, SecretStr(KEY), f"{url}/search")
        try:
            found = await asyncio.gather(*(provider.search(query, 5) for query in queries), return_exceptions=True)
        finally:
            await transport.close()
        return found, transport

    (*found,), transport = asyncio.run(ask())
    for result in found:
        if isinstance(result, BaseException) and not isinstance(result, SearchError):
            raise result
    return (found[0] if len(queries) == 1 else found), transport


def test_too_many_requests_are_asked_again_after_the_time_that_the_provider_names():
    with Site(replies_with({}, 429, retry_after="1"), replies_with(GOOD)) as site:
        found, _ = search(site.url, "heron", attempts=2)
    assert [item.title for item in found] == ["Heron"]
    first, second = site.requests
    assert second.at - first.at >= 1.0 and second.body == first.body


def test_a_date_in_retry_after_is_understood_and_one_in_the_past_does_not_wait():
    then = int(time.time()) + 3
    with Site(replies_with({}, 503, retry_after=email.utils.formatdate(then, usegmt=True)), replies_with(GOOD)) as site:
        found, _ = search(site.url, "heron", attempts=2)
    assert [item.title for item in found] == ["Heron"] and len(site.requests) == 2 and time.time() >= then
    with Site(replies_with({}, 503, retry_after="Mon, 01 Jan 2001 00:00:00 GMT"), replies_with(GOOD)) as site:
        assert search(site.url, "heron", attempts=2)[0] and len(site.requests) == 2


def test_a_wait_longer_than_the_budget_is_not_waited_for():
    with Site(replies_with({}, 429, retry_after="3600")) as site:
        found, _ = search(site.url, "heron", attempts=5)
    assert "429" in str(found) and len(site.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 429])
def test_an_outage_is_tried_as_often_as_allowed_and_then_named(status):
    with Site(replies_with({"message": "secret " + KEY}, status)) as site:
        found, transport = search(site.url, "heron", attempts=2)
    assert type(found).__name__ == "TransientError" and str(status) in str(found) and len(site.requests) == 2
    assert transport.counters[f"status {status}"] == 2 == transport.counters["requests"]


@pytest.mark.parametrize(
    ("status", "says_"), [(400, "status 400"), (401, "key"), (402, "key"), (403, "key"), (404, "404")]
)
def test_an_error_that_a_retry_cannot_fix_is_not_retried(status, says_):
    with Site(replies_with({"message": "Not enough credits"}, status)) as site:
        found, _ = search(site.url, "heron", attempts=3)
    assert isinstance(found, SearchError) and not isinstance(found, BadQuery)  # not the caller's error
    assert says_ in str(found) and len(site.requests) == 1


@pytest.mark.parametrize("answer", [hang, drip], ids=["silent", "a byte now and then"])
def test_a_provider_that_never_finishes_is_given_up_and_hung_up_on(answer):
    with Site(answer) as site:
        found, transport = search(site.url, "heron", timeout_s=0.3, attempts=2)
        assert "no answer within 0.3 s" in str(found) and transport.counters["timeout"] == 2
        if answer is drip:
            assert site.hung_up.wait(30)


def test_the_budget_ends_attempts_that_each_would_be_in_time():
    with Site(hang) as site:
        found, _ = search(site.url, "heron", timeout_s=0.5, budget_s=0.7, attempts=50)
        assert isinstance(found, SearchError) and len(site.requests) <= 2


def test_a_cancelled_search_hangs_up():
    async def cancel(site):
        transport = Transport("serper", RetryPolicy())
        asking = asyncio.create_task(WebSearch("serper", transport, SecretStr(KEY), site.url).search("heron", 1))
        while not site.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert transport.breaker.state == "closed"
        await transport.close()

    with Site(drip) as site:
        asyncio.run(cancel(site))
        assert site.hung_up.wait(30)


@pytest.mark.parametrize("answer", [bomb, flood], ids=["gzip bomb", "endless body"])
def test_a_reply_above_the_limit_is_dropped_before_it_is_in_memory(answer):
    with Site(answer) as site:
        search(site.url, "warm up: imports, connection pool", reply_bytes=1 << 18)
        tracemalloc.start()
        found, transport = search(site.url, "heron", reply_bytes=1 << 18, attempts=3)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert "more than 256 KiB" in str(found) and transport.counters["requests"] == 1
        # httpx alone would decompress 64 KiB of the bomb to 64 MB. The bound includes the server in this process.
        assert peak < 24 << 20, peak
        assert site.hung_up.wait(30)


def test_packed_replies_are_read_and_broken_packing_is_an_error():
    with Site(replies_with(GOOD, packed=True)) as site:
        assert [item.title for item in search(site.url, "heron")[0]] == ["Heron"]
        assert site.requests[0].headers["accept-encoding"] == "gzip"
    packed = gzip.compress(json.dumps(GOOD).encode())
    for body, encoding in ((packed[:-12], "gzip"), (b"{}" + packed, "gzip"), (packed, "br"), (packed, "gzip, gzip")):
        with Site(replies_with(body, content_encoding=encoding)) as site:
            assert isinstance(search(site.url, "heron")[0], SearchError)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b'"text"', b"<html>" + KEY.encode(), b'{"searchParameters": {}, "organic": ', b"\xff\xfe{}",
        b"[" * 100_000, b'{"error": "quota", "message": "over"}', b'{"searchParameters": {}, "organic": {}}',
        b'{"searchParameters": {}, "organic": [{"title": 1, "link": "https://example.org"}]}',
        b'{"searchParameters": {}, "organic": [{"title": "x"}]}', b'{"searchParameters": {}, "organic": [null]}',
        b'{"searchParameters": [], "organic": []}', b'{"searchParameters": {}, "organic": [{"title": "\\ud800", "link": ""}]}',
    ],
)  # fmt: skip
def test_a_reply_in_another_form_is_an_error_and_not_an_empty_answer(body):
    with Site(replies_with(body)) as site:
        found, transport = search(site.url, "heron", attempts=3)
    assert isinstance(found, SearchError) and "unknown form" in str(found), found
    assert transport.counters["schema"] == 1 == len(site.requests)
    assert "quota" not in str(found) and "html" not in str(found)


def test_an_answer_without_results_is_an_empty_answer():
    with Site(
        replies_with({"searchParameters": {"q": "x"}, "organic": []}), replies_with({"searchParameters": {"q": "x"}})
    ) as site:
        assert search(site.url, "heron", "egret")[0] == [[], []]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_for_the_key_would_go_with_it(status):
    with (
        Site(replies_with(GOOD)) as elsewhere,
        Site(replies_with({}, status, location=f"{elsewhere.url}/{KEY}")) as site,
    ):
        found, _ = search(site.url, "heron", attempts=3)
        assert "redirect" in str(found) and KEY not in str(found) and elsewhere.url not in str(found)
        assert elsewhere.requests == [] and len(site.requests) == 1


def test_broken_and_refused_connections_are_outages():
    with Site(reset, replies_with(GOOD)) as site:
        assert [item.title for item in search(site.url, "heron", attempts=2)[0]] == ["Heron"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening
        found, _ = search(f"http://127.0.0.1:{closed.getsockname()[1]}", "heron", attempts=2)
    assert "cannot be reached" in str(found)


def test_proxies_and_credentials_of_the_environment_are_not_used(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Site(replies_with(GOOD)) as proxy, Site(replies_with(GOOD)) as site:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert search(site.url, "heron")[0]
        assert proxy.requests == [] and "authorization" not in site.requests[0].headers


def test_no_more_requests_leave_than_the_rate_allows():
    with Site(replies_with(GOOD)) as site:
        started = time.monotonic()
        found, _ = search(site.url, *(f"query {i}" for i in range(25)), rate=10)
    assert all(len(items) == 1 for items in found)
    # A burst of 10, then 10 per second; a slow machine only increases the duration.
    assert max(request.at for request in site.requests) - started >= 1.45


class LogCapture(logging.Handler):
    """Captures log records of the service, independently of its logging configuration."""

    def __init__(self):
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def __enter__(self) -> LogCapture:
        logging.getLogger("tools_service").addHandler(self)
        return self

    def __exit__(self, *_) -> None:
        logging.getLogger("tools_service").removeHandler(self)


def test_after_failures_in_a_row_the_provider_is_left_alone():
    with Site(replies_with({}, 500)) as site, LogCapture() as log:
        found, transport = search(site.url, *(f"query {i}" for i in range(12)), failures=3, max_concurrent=1)
    assert len(site.requests) == 3 and transport.breaker.state == "open"
    assert sum(isinstance(error, CircuitOpen) for error in found) == 9
    (opened,) = (record for record in log.records if record.getMessage() == "circuit opened")
    assert opened.levelname == "WARNING" and opened.fields == {"provider": "serper", "failures": 3}


def test_requests_that_the_provider_rejects_do_not_keep_others_from_asking():
    """Catches a few invalid queries of one policy opening the circuit for all callers."""
    with Site(*[replies_with({}, 400)] * 8, replies_with(GOOD)) as site:
        found, transport = search(site.url, *(f"query {i}" for i in range(9)), failures=3, max_concurrent=1)
    assert [isinstance(result, SearchError) for result in found] == [True] * 8 + [
        False
    ] and transport.breaker.state == "closed"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _call(breaker: CircuitBreaker, error: BaseException | None = None) -> str:
    try:
        with breaker.guard():
            if error is not None:
                raise error
    except CircuitOpen:
        return "refused"
    except BaseException as raised:
        assert raised is error
        return "failed"
    return "passed"


def test_an_open_circuit_lets_one_trial_through_after_the_pause():
    clock = Clock()
    breaker = CircuitBreaker("p", failures=2, pause_s=10, clock=clock)
    outage = SearchError("down")
    assert [_call(breaker, outage), _call(breaker), _call(breaker, outage)] == ["failed", "passed", "failed"]
    assert breaker.state == "closed"  # never two in a row so far
    assert [_call(breaker, outage), _call(breaker)] == ["failed", "refused"] and breaker.state == "open"
    clock.now = 10.0
    assert breaker.state == "half-open"
    with breaker.guard():
        assert [_call(breaker), breaker.state] == ["refused", "open"]  # one trial at a time
    assert breaker.state == "closed" and _call(breaker) == "passed"
    for error in (outage, outage):
        _call(breaker, error)
    clock.now = 20.0
    assert [_call(breaker, outage), _call(breaker)] == ["failed", "refused"]  # a failed trial starts another full pause
    clock.now = 30.0
    # A cancelled call does not count as an outcome.
    assert _call(breaker, asyncio.CancelledError()) == "failed" and breaker.state == "half-open"
    assert _call(breaker, BadQuery("no word")) == "failed" and breaker.state == "closed"  # the provider did answer


@pytest.mark.parametrize(
    "answer",
    [
        replies_with({"searchParameters": {"key": KEY}, "organic": [
            {"title": f"Your key is {KEY}", "link": f"https://example.org/?api_key={KEY}", "snippet": KEY, "date": KEY}]}),
        replies_with({"message": KEY}, 403), replies_with({"message": KEY}, 500, x_key=KEY), replies_with(KEY.encode()), replies_with({}, 302, location=f"/{KEY}"),
        replies_with({KEY: KEY, "searchParameters": KEY}), reset, bomb,
    ],
    ids=["echoed in results", "403", "500", "no JSON", "redirect", "schema", "reset", "bomb"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["serper", "serpapi"])  # key in a header, key in the address
def test_the_key_is_in_no_log_no_error_and_no_result(answer, name, caplog):
    async def ask(url):
        transport = Transport(name, RetryPolicy(attempts=2))
        provider = WebSearch(name, transport, SecretStr(KEY), f"{url}/search")
        result = await asyncio.gather(provider.search("heron", 5), return_exceptions=True)
        await transport.close()
        return f"{result!r} {provider!r} {vars(provider)!r} {transport.counters!r} {getattr(result[0], '__context__', '')!r}"

    caplog.set_level(logging.DEBUG)
    with Site(answer) as site, LogCapture() as log:
        shown = asyncio.run(ask(site.url))
        assert KEY in str(site.requests)  # the key reached the provider
    assert KEY not in shown
    logged = "\n".join(
        f"{record.getMessage()} {vars(record)}"
        for record in [*caplog.records, *log.records]
        if record.name != "asyncio"
    )
    assert KEY not in logged
