"""Tests cassettes: a query is sent once and replayed unchanged, without network and without secrets."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.tools_service.search.search_site import Site, replies_with
from tools_service.cli import recordings as command
from tools_service.search.chain import ProviderChain
from tools_service.search.http.request import RetryPolicy
from tools_service.search.http.transport import Transport
from tools_service.search.provider import BadQuery, SearchError, SearchHit
from tools_service.search.providers.web import WebSearch
from tools_service.search.recording_store import CachedProvider, CassetteEntry, CassetteStore, NotRecorded, query_key

KEY = "an-account-key-to-be-kept-secret"


class CountingProvider:
    """An in-memory provider that counts searches and can block or fail."""

    name = "counting"

    def __init__(self, results: int = 9):
        self.asked, self.results, self.error, self.gate = [], results, None, None

    async def search(self, query, k):
        self.asked.append((query, k))
        if self.gate:
            await self.gate.wait()
        if self.error:
            raise self.error
        return [
            SearchHit(f"{query} {i}", "https://example.org", "snippet ☂", "2024", bytes([i, 255]), 0.1 + i)
            for i in range(min(k, self.results))
        ]


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "answers.sqlite"


def test_an_answer_is_asked_for_once_and_then_replayed_to_the_last_bit(path):
    live = CountingProvider()
    recorded = CachedProvider("counting", live, CassetteStore(path), "record", "us-en")
    first = run(recorded.search_or_replay("grey heron", 4))
    again = run(recorded.search_or_replay("grey heron", 4))
    assert first == (again[0], False) and again[1] and len(live.asked) == 1
    replaying = CachedProvider("counting", None, CassetteStore(path, read_only=True), "replay", "us-en")
    assert run(replaying.search_or_replay("grey heron", 4)) == (first[0], True)
    assert first[0][1] == SearchHit("grey heron 1", "https://example.org", "snippet ☂", "2024", b"\x01\xff", 1.1)


def test_a_recording_works_without_a_network_and_holds_no_secret(path):
    async def search(url, mode, recordings):
        transport = Transport("serper", RetryPolicy(attempts=1))
        live = WebSearch("serper", transport, SecretStr(KEY), url) if mode == "record" else None
        try:
            return await ProviderChain([CachedProvider("serper", live, recordings, mode, "us-en")]).search("heron", 3)
        finally:
            await transport.close()

    with Site(
        replies_with({"searchParameters": {}, "organic": [{"title": "Heron", "link": f"https://example.org/{KEY}"}]})
    ) as site:
        first = run(search(site.url, "record", CassetteStore(path)))
    second = run(search(None, "replay", CassetteStore(path, read_only=True)))
    assert second.items == first.items and (first.cached, second.cached) == (False, True) and not second.degraded
    assert KEY.encode() not in path.read_bytes() and site.url.encode() not in path.read_bytes()


def test_what_was_not_recorded_is_said_and_the_next_in_the_chain_answers(path):
    CassetteStore(path).close()
    replaying = CachedProvider("counting", None, CassetteStore(path, read_only=True), "replay")
    with pytest.raises(NotRecorded, match="never recorded"):
        run(replaying.search("x", 1))
    answer = run(ProviderChain([replaying, CountingProvider()]).search("x", 1))
    assert answer.provider == "counting" and answer.degraded and "never recorded" in answer.message


def test_queries_that_differ_in_form_alone_share_an_answer_and_others_do_not(path):
    live = CountingProvider()
    recorded = CachedProvider("counting", live, CassetteStore(path), "record")
    for query in ("caf\u00e9 heron", "cafe\u0301  heron ", "\tcaf\u00e9\nheron"):
        run(recorded.search(query, 2))
    assert len(live.asked) == 1
    run(recorded.search("Caf\u00e9 heron", 2))
    assert len(live.asked) == 2
    assert query_key(b"ab") != query_key(b"ac") and query_key(b"ab") != query_key("ab")
    run(CachedProvider("counting", live, CassetteStore(path), "record", "de-fr").search("caf\u00e9 heron", 2))
    run(CachedProvider("other", live, CassetteStore(path), "record").search("caf\u00e9 heron", 2))
    assert len(live.asked) == 4


def test_fewer_results_are_the_first_of_many_and_more_are_asked_for(path):
    live = CountingProvider(results=6)
    recorded = CachedProvider("counting", live, CassetteStore(path), "record")
    three = run(recorded.search("q", 3))
    assert run(recorded.search("q", 2)) == three[:2] and live.asked == [("q", 3)]
    assert len(run(recorded.search("q", 8))) == 6 and live.asked == [("q", 3), ("q", 8)]
    # Six results for k = 8 are exhaustive, so the answer serves any k.
    assert len(run(recorded.search("q", 50))) == 6 and len(live.asked) == 2


def test_many_who_ask_the_same_at_once_ask_once(path):
    async def together():
        live, recordings = CountingProvider(), CassetteStore(path)
        live.gate = asyncio.Event()
        recorded = CachedProvider("counting", live, recordings, "record")
        asking = [asyncio.create_task(recorded.search("q", 1 + i % 3)) for i in range(2, 18)]
        gone = asyncio.create_task(recorded.search("q", 3))
        while not live.asked:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0.001)
        gone.cancel()
        live.gate.set()
        found = await asyncio.gather(*asking)
        assert [len(items) for items in found] == [1 + i % 3 for i in range(2, 18)]
        assert len(live.asked) <= 3, live.asked  # at most once per k
        assert await recorded.search("q", 3) and len(live.asked) <= 3

    run(together())


def test_an_outage_and_a_bad_query_are_not_recorded(path):
    live = CountingProvider()
    recorded = CachedProvider("counting", live, CassetteStore(path), "record")
    for error in (SearchError("down"), BadQuery("no word")):
        live.error = error
        with pytest.raises(type(error)):
            run(recorded.search("q", 1))
    live.error = None
    assert run(recorded.search_or_replay("q", 1))[1] is False and len(CassetteStore(path)) == 1


def test_an_empty_answer_is_an_answer(path):
    live = CountingProvider(results=0)
    recorded = CachedProvider("counting", live, CassetteStore(path), "record")
    assert run(recorded.search_or_replay("q", 3)) == ([], False) and run(recorded.search_or_replay("q", 3)) == (
        [],
        True,
    )


def test_refresh_asks_anew_and_replaces(path):
    run(CachedProvider("counting", CountingProvider(results=1), CassetteStore(path), "record").search("q", 3))
    refreshing = CachedProvider("counting", CountingProvider(results=2), CassetteStore(path), "refresh")
    assert len(run(refreshing.search("q", 3))) == 2 and len(run(refreshing.search("q", 3))) == 2
    replayed = run(CachedProvider("counting", None, CassetteStore(path, read_only=True), "replay").search("q", 3))
    assert len(replayed) == 2 and len(CassetteStore(path)) == 1


def test_a_recording_that_is_missing_or_something_else_is_named(tmp_path):
    with pytest.raises(ValueError, match="record one first"):
        CassetteStore(tmp_path / "absent.sqlite", read_only=True)
    (tmp_path / "text").write_text("no database, but more than a hundred bytes of text. " * 10)
    with pytest.raises(ValueError, match="cannot be used as a recording"):
        CassetteStore(tmp_path / "text")
    with pytest.raises(ValueError, match="cannot be used as a recording"):
        CassetteStore(tmp_path / "no such folder" / "x.sqlite")
    with sqlite3.connect(tmp_path / "later") as later:
        later.execute("PRAGMA user_version = 7")
    with pytest.raises(ValueError, match="format 7"):
        CassetteStore(tmp_path / "later")
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE songs (name)")
    with pytest.raises(ValueError, match="cannot be used as a recording"):
        CassetteStore(tmp_path / "other", read_only=True)


def test_two_services_may_record_into_one_file(path):
    one, two = CassetteStore(path), CassetteStore(path)
    for i in range(50):
        (one, two)[i % 2].replace(CassetteEntry("p", "", f"q{i}", 1, (), float(i)))
    assert len(one) == len(two) == 50


def test_services_that_ask_at_the_same_time_give_the_answer_that_is_replayed(path):
    """Catches an answer that differs from the one recorded and replayed later."""

    async def race():
        first, second = CountingProvider(results=4), CountingProvider(results=5)
        first.gate, second.gate = asyncio.Event(), asyncio.Event()
        one, two = (CachedProvider("p", live, CassetteStore(path), "record") for live in (first, second))
        asking = [asyncio.create_task(one.search("q", 3)), asyncio.create_task(two.search("q", 2))]
        while not (first.asked and second.asked):
            await asyncio.sleep(0.001)
        second.gate.set()
        narrow = await asking[1]
        first.gate.set()
        wide = await asking[0]
        late = await two.search("q", 3)
        return narrow, wide, late

    narrow, wide, late = run(race())
    kept = list(CassetteStore(path).get("p", "", "q").items)
    assert (len(narrow), len(wide), kept, late) == (2, 3, wide, wide)
    assert CassetteStore(path).add_if_larger(
        CassetteEntry("p", "", "q", 2, (SearchHit("later, narrower"),), 9e9)
    ).items == tuple(wide)


def fill(path, *answers: tuple[str, str, float]):
    recordings = CassetteStore(path)
    for query, title, at in answers:
        recordings.replace(CassetteEntry("serper", "us-en", query, 3, (SearchHit(title, thumbnail=b"\x00\x01"),), at))
    recordings.close()


def test_exports_depend_on_contents_alone_and_merge_back(tmp_path, capsys):
    fill(tmp_path / "a", ("x", "old", 1.0), ("y", "only in a", 2.0))
    fill(tmp_path / "b", ("z", "only in b", 3.0), ("x", "new", 4.0))
    command.main(["export", str(tmp_path / "a"), str(tmp_path / "a.jsonl")])
    for target, sources in (("ab", ("a", "b")), ("ba", ("b", "a.jsonl"))):
        command.main(["merge", str(tmp_path / target), *(str(tmp_path / source) for source in sources)])
        command.main(["export", str(tmp_path / target), str(tmp_path / f"{target}.jsonl")])
    exported = (tmp_path / "ab.jsonl").read_bytes()
    assert exported == (tmp_path / "ba.jsonl").read_bytes()
    titles = [json.loads(line)["items"][0]["title"] for line in exported.splitlines()]
    assert titles == ["new", "only in a", "only in b"]
    capsys.readouterr()
    command.main(["show", str(tmp_path / "ab")])
    assert "serper (us-en): 3 answers" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["{", "[]", '{"provider": "serper"}', '{"provider": "p", "variant": "", "query": "q", "k": 1, '
                                  '"items": [{"colour": 1}], "recorded_at": 0}'])  # fmt: skip
def test_a_line_that_is_no_answer_is_named(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(SystemExit, match="line 1 is no recorded answer"):
        command.main(["merge", str(tmp_path / "x"), str(tmp_path / "x.jsonl")])
