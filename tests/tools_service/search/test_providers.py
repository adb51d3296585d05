"""Tests live providers against their public API references: the request sent and the parsed reply."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import ssl

import pytest
import trustme
from PIL import Image
from pydantic import SecretStr

from tests.tools_service.search.search_site import Site, replies_with
from tools_service.search.chain import ProviderChain
from tools_service.search.http.public_urls import PublishFolder, UrlTable
from tools_service.search.http.request import RetryPolicy
from tools_service.search.http.thumbnails import ThumbnailFetcher, is_public
from tools_service.search.http.transport import Transport
from tools_service.search.provider import BadQuery, SearchError, SearchHit
from tools_service.search.providers.lens import LensSearch
from tools_service.search.providers.web import APIS, Locale, WebSearch

KEY = "an-account-key"

# Replies in the documented form of each API, with more fields than are used.
SERPER = {
    "searchParameters": {"q": "grey heron", "gl": "de", "hl": "fr", "num": 3, "type": "search"},
    "knowledgeGraph": {"title": "Heron", "attributes": {"Mass": "1.5 kg"}},
    "organic": [
        {"title": "Grey heron", "link": "https://example.org/heron", "snippet": "A wading bird.", "date": "Mar 3, 2024",
         "sitelinks": [{"title": "Diet", "link": "https://example.org/diet"}], "position": 1},
        {"title": "Ardea", "link": "https://example.org/ardea", "position": 2},
    ],
    "peopleAlsoAsk": [{"question": "Is it large?"}],
    "credits": 1,
}  # fmt: skip
SERPAPI = {
    "search_metadata": {"id": "65a", "status": "Success", "total_time_taken": 1.1},
    "search_parameters": {"engine": "google", "q": "grey heron"},
    "organic_results": [
        {"position": 1, "title": "Grey heron", "link": "https://example.org/heron", "displayed_link": "example.org",
         "snippet": "A wading bird.", "date": "Mar 3, 2024", "source": "Example"},
        {"position": 2, "title": "Ardea", "link": "https://example.org/ardea"},
    ],
    "related_questions": [{"question": "Is it large?"}],
}  # fmt: skip
BRAVE = {
    "type": "search",
    "query": {"original": "grey heron", "more_results_available": True},
    "web": {
        "type": "search",
        "results": [
            {"title": "Grey heron", "url": "https://example.org/heron", "description": "A <strong>wading</strong> bird.",
             "age": "Mar 3, 2024", "language": "en", "meta_url": {"hostname": "example.org"}},
            {"title": "Ardea", "url": "https://example.org/ardea", "description": ""},
        ],
    },
}  # fmt: skip
TAVILY = {
    "query": "grey heron",
    "answer": None,
    "images": [],
    "results": [
        {"title": "Grey heron", "url": "https://example.org/heron", "content": "A wading bird.", "score": 0.98,
         "raw_content": None, "published_date": "Mar 3, 2024"},
        {"title": "Ardea", "url": "https://example.org/ardea", "content": "", "score": 0.5},
    ],
    "response_time": "1.2",
    "request_id": "r-1",
}  # fmt: skip
SEARXNG = {
    "query": "grey heron",
    "results": [
        {"url": "https://example.org/heron", "title": "Grey heron", "content": "A wading bird.", "engine": "bing",
         "engines": ["bing"], "positions": [1], "score": 4, "category": "general", "publishedDate": "Mar 3, 2024"},
        {"url": "https://example.org/ardea", "title": "Ardea", "content": None, "publishedDate": None},
    ],
    "answers": [],
    "unresponsive_engines": [["google", "CAPTCHA"]],
}  # fmt: skip
RETRIEVER = {
    "result": [[
        {"document": {"id": "7", "contents": '"Grey heron"\nA wading bird.'}, "score": 0.98},
        {"document": {"id": "9", "contents": '"Ardea"\n'}, "score": 0.5},
    ]]
}  # fmt: skip

CASES = {
    "serper": (SERPER, lambda r: (
        (r.method, r.json) == ("POST", {"q": "grey heron", "num": 3, "gl": "de", "hl": "fr"}) and r.headers["x-api-key"] == KEY
    )),
    "serpapi": (SERPAPI, lambda r: (r.method, r.query) == ("GET", {
        "engine": "google", "q": "grey heron", "num": "3", "gl": "de", "hl": "fr", "api_key": KEY})),
    "brave": (BRAVE, lambda r: (r.method, r.query) == ("GET", {
        "q": "grey heron", "count": "3", "country": "DE", "search_lang": "fr", "text_decorations": "false",
    }) and r.headers["x-subscription-token"] == KEY),
    "tavily": (TAVILY, lambda r: (
        (r.method, r.json) == ("POST", {"query": "grey heron", "max_results": 3}) and r.headers["authorization"] == f"Bearer {KEY}"
    )),
    "searxng": (SEARXNG, lambda r: (r.method, r.query) == ("GET", {"q": "grey heron", "format": "json", "language": "fr"})),
    "retriever": (RETRIEVER, lambda r: (
        (r.method, r.json) == ("POST", {"queries": ["grey heron"], "topk": 3, "return_scores": True})
    )),
}  # fmt: skip


def web_search(name: str, url: str, query: str = "grey heron", k: int = 3) -> list[SearchHit]:
    async def search():
        transport = Transport(name, RetryPolicy(attempts=1))
        try:
            return await WebSearch(name, transport, SecretStr(KEY), f"{url}/found/here", Locale("de", "fr")).search(
                query, k
            )
        finally:
            await transport.close()

    return asyncio.run(search())


def test_every_provider_has_its_case():
    assert CASES.keys() == APIS.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_provider_is_asked_by_its_reference_and_read_by_its_schema(name):
    shape, asked_rightly = CASES[name]
    with Site(replies_with(shape)) as site:
        first, second = web_search(name, site.url)
    request = site.requests[0]
    assert request.path == "/found/here" and asked_rightly(request), request
    assert KEY not in request.path and (name == "serpapi" or KEY not in str(request.query))
    assert (first.title, first.snippet) == ("Grey heron", "A wading bird.")
    assert first.url == ("" if name == "retriever" else "https://example.org/heron")
    assert first.date == ("" if name == "retriever" else "Mar 3, 2024")
    assert second == SearchHit("Ardea", "" if name == "retriever" else "https://example.org/ardea", score=second.score)
    if name in ("tavily", "retriever"):
        assert (first.score, second.score) == (0.98, 0.5)


@pytest.mark.parametrize("name", CASES)
def test_no_more_results_than_asked_for(name):
    with Site(replies_with(CASES[name][0])) as site:
        assert len(web_search(name, site.url, k=1)) == 1


def test_an_empty_result_is_distinguished_from_a_failed_search():
    nothing = {
        "serpapi": {
            "search_metadata": {"status": "Success"},
            "error": "Google hasn't returned any results for this query.",
        },
        "brave": {"type": "search", "query": {"original": "x"}},
        "searxng": {"query": "x", "results": [], "unresponsive_engines": []},
        "retriever": {"result": [[]]},
    }
    for name, shape in nothing.items():
        with Site(replies_with(shape)) as site:
            assert web_search(name, site.url) == []
    failed = {
        "serpapi": {"search_metadata": {"status": "Error"}, "error": "We could not get it."},
        "brave": {"type": "ErrorResponse", "error": {"code": "RATE_LIMITED"}},
        "searxng": {"query": "x", "results": [], "unresponsive_engines": [["google", "CAPTCHA"], ["bing", "timeout"]]},
        "retriever": {"result": []},
        "tavily": {"detail": {"error": "Invalid API key"}},
    }
    for name, shape in failed.items():
        with Site(replies_with(shape)) as site, pytest.raises(SearchError):
            web_search(name, site.url)


@pytest.mark.parametrize(("name", "query"), [
    ("brave", "x" * 401), ("brave", "a " * 51), ("tavily", "x" * 401), ("serper", ""), ("retriever", " \n\u3000"),
])  # fmt: skip
def test_a_query_that_the_provider_would_not_take_is_the_callers_mistake(name, query):
    with Site(replies_with(CASES[name][0])) as site:
        with pytest.raises(BadQuery, match="400" if query.strip() else "empty"):
            web_search(name, site.url, query)
        assert site.requests == []


def test_results_are_plain_text_of_bounded_length_with_web_addresses_alone():
    organic = [
        {"title": "a\x00b\x1b[31m\u0085" + "t" * 1000, "link": "javascript:alert(1)", "snippet": "s" * 100_000, "date": "d" * 500},
        {"title": "x", "link": "https://example.org/ space"}, {"title": "x", "link": "https://example.org/" + "u" * 5000},
        {"title": "x", "link": "file:///etc/passwd"}, {"title": "x", "link": "HTTPS://EXAMPLE.ORG/"},
    ]  # fmt: skip
    with Site(replies_with({"searchParameters": {}, "organic": organic})) as site:
        items = web_search("serper", site.url, k=9)
    assert items[0].title.startswith("a b [31m ttt") and [len(t) for t in (items[0].title, items[0].snippet, items[0].date)] == [
        300, 2000, 60]  # fmt: skip
    assert [item.url for item in items] == ["", "", "", "", "HTTPS://EXAMPLE.ORG/"]


# Google Lens


def encode(color, kind: str = "PNG", size=(640, 480), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind, **options)
    return buffer.getvalue()


def lens_search(
    name: str, url: str, image: bytes, public_urls, k: int = 5, allowed=lambda address, port: True
) -> list[SearchHit]:
    async def search():
        transport, thumbnails = Transport(name, RetryPolicy(attempts=1)), ThumbnailFetcher(allowed)
        try:
            lens = LensSearch(
                name, transport, SecretStr(KEY), public_urls, thumbnails, f"{url}/lens", Locale("de", "fr")
            )
            return await lens.search(image, k)
        finally:
            await transport.close()
            await thumbnails.close()

    return asyncio.run(search())


def lens_shape(name: str, thumbnails: list[str | None]) -> dict:
    field = "thumbnail" if name == "serpapi-lens" else "thumbnailUrl"
    matches = [
        {"position": i + 1, "title": f"Match {i}", "link": f"https://example.org/{i}", "source": "Example"}
        | ({field: url} if url is not None else {})
        for i, url in enumerate(thumbnails)
    ]  # fmt: skip
    if name == "serpapi-lens":
        return {"search_metadata": {"status": "Success"}, "visual_matches": matches}
    return {"searchParameters": {"url": "x", "type": "lens"}, "organic": matches}


@pytest.fixture
def table(tmp_path):
    """Returns a table of public URLs and an image that it contains."""
    image = encode("teal")
    rows = [{"sha256": hashlib.sha256(image).hexdigest(), "url": "https://example.org/teal.png"}]
    (tmp_path / "urls.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return UrlTable.open(str(tmp_path / "urls.jsonl")), image


@pytest.mark.parametrize("name", ["serpapi-lens", "serper-lens"])
def test_lens_gets_the_public_url_of_the_image_and_results_carry_thumbnails(name, table):
    with Site(replies_with(encode("red"), content_type="image/png")) as image_site:
        inline = "data:image/jpeg;base64," + base64.b64encode(encode("blue", "JPEG")).decode()
        with Site(
            replies_with(lens_shape(name, [f"{image_site.url}/a.png", inline, None, f"{image_site.url}/b.png"]))
        ) as site:
            items = lens_search(name, site.url, table[1], table[0], k=3)
        assert [request.path for request in image_site.requests] == ["/a.png"]  # the fourth was not asked for
        assert image_site.requests[0].headers["host"] == f"127.0.0.1:{image_site.port}" and KEY not in str(
            image_site.requests
        )
    asked = site.requests[0]
    if name == "serpapi-lens":
        assert asked.query == {"engine": "google_lens", "type": "visual_matches", "url": "https://example.org/teal.png",
                               "hl": "fr", "country": "de", "api_key": KEY}  # fmt: skip
    else:
        assert (
            asked.json == {"url": "https://example.org/teal.png", "gl": "de", "hl": "fr"}
            and asked.headers["x-api-key"] == KEY
        )
    assert [(item.title, item.url) for item in items] == [(f"Match {i}", f"https://example.org/{i}") for i in range(3)]
    small = [Image.open(io.BytesIO(item.thumbnail)) for item in items[:2]]
    assert [(s.format, s.size) for s in small] == [("PNG", (224, 168))] * 2 and items[2].thumbnail == b""
    assert small[0].getpixel((9, 9)) == (255, 0, 0) and small[1].getpixel((9, 9))[2] > 240


def test_thumbnails_are_fetched_from_public_hosts_alone(table):
    with Site(replies_with(encode("red"), content_type="image/png")) as inside:
        urls = [
            f"{inside.url}/x", f"http://localhost:{inside.port}/x", f"http://[::ffff:127.0.0.1]:{inside.port}/x", "file:///etc/passwd",
            "http://169.254.169.254/latest/meta-data/", "ftp://example.org/x", "http://user:word@127.0.0.1/x", "http://[", "data:text/html,x",
        ]  # fmt: skip
        with Site(replies_with(lens_shape("serper-lens", urls))) as site:
            items = lens_search("serper-lens", site.url, table[1], table[0], k=20, allowed=is_public)
        assert len(items) == len(urls) and not any(item.thumbnail for item in items)
        assert inside.requests == []


@pytest.mark.parametrize("answer", [
    replies_with(b"not an image"), replies_with(b"", 404), replies_with(encode("red"), 302, location="/y"), replies_with(b"x" * (3 << 20)),
    replies_with(encode("red"), packed=True), replies_with(encode("red")[:60]),
])  # fmt: skip
def test_a_thumbnail_that_cannot_be_had_leaves_the_result_without(answer, table):
    with Site(answer) as image_site, Site(replies_with(lens_shape("serper-lens", [f"{image_site.url}/a"]))) as site:
        (item,) = lens_search("serper-lens", site.url, table[1], table[0])
        assert (item.title, item.thumbnail) == ("Match 0", b"") and len(image_site.requests) == 1


def test_a_host_is_asked_at_the_address_that_was_checked_and_must_prove_its_name():
    """Catches DNS rebinding: the connection uses the checked address, while TLS verifies the host name."""
    authority = trustme.CA()

    def served(name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        return context

    async def fetch(*urls: str) -> list[bytes]:
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        thumbnails = ThumbnailFetcher(lambda address, port: checked.append(address) or True, trusting)
        try:
            return await thumbnails.fetch(urls)
        finally:
            await thumbnails.close()

    checked: list[str] = []
    answer = replies_with(encode("red"), content_type="image/png")
    with Site(answer, tls=served("localhost")) as right, Site(answer, tls=served("elsewhere.example")) as wrong:
        found = asyncio.run(fetch(f"https://localhost:{right.port}/x", f"https://localhost:{wrong.port}/x"))
        assert [bool(data) for data in found] == [True, False]
        assert right.requests[0].headers["host"] == f"localhost:{right.port}" and wrong.requests == []
    assert "127.0.0.1" in checked and "localhost" not in checked


@pytest.mark.parametrize(("address", "port", "public"), [
    ("93.184.216.34", 443, True), ("2606:2800:220:1::1", 443, True), ("93.184.216.34", 80, True), ("93.184.216.34", 6379, False),
    ("127.0.0.1", 80, False), ("10.1.2.3", 443, False), ("172.16.0.1", 443, False), ("192.168.1.1", 443, False),
    ("169.254.169.254", 80, False), ("100.64.0.1", 443, False), ("0.0.0.0", 80, False), ("224.0.0.1", 80, False),
    ("::1", 80, False), ("fe80::1%eth0", 80, False), ("fd00:ec2::254", 80, False), ("::ffff:169.254.169.254", 80, False),
    ("64:ff9b::a9fe:a9fe", 80, False), ("2002:a9fe:a9fe::1", 80, False), ("ff02::1", 80, False),
])  # fmt: skip
def test_which_addresses_are_public(address, port, public):
    assert is_public(address, port) is public


def test_an_image_without_a_public_url_is_not_searched_for(table):
    with Site(replies_with(lens_shape("serper-lens", []))) as site:
        with pytest.raises(SearchError, match="--image-urls"):
            lens_search("serper-lens", site.url, encode("pink"), table[0])
        assert site.requests == []


def test_a_published_image_is_small_without_metadata_and_gone_afterwards(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "camera of somebody"
    image = encode("teal", "JPEG", size=(4000, 1000), exif=exif)
    shown: list[tuple[str, bytes]] = []

    def answer(handler):
        names = os.listdir(tmp_path)
        shown.extend((name, (tmp_path / name).read_bytes()) for name in names)
        replies_with(lens_shape("serper-lens", []) if len(shown) == 1 else {}, 200 if len(shown) == 1 else 403)(handler)

    public_urls = PublishFolder(str(tmp_path), "https://images.example.org/now/")
    with Site(answer) as site:
        assert lens_search("serper-lens", site.url, image, public_urls) == []
        with pytest.raises(SearchError):
            lens_search("serper-lens", site.url, image, public_urls)
    assert os.listdir(tmp_path) == [] and len(shown) == 2 and shown[0][0] != shown[1][0]
    for request, (name, data) in zip(site.requests, shown, strict=True):
        assert request.json["url"] == f"https://images.example.org/now/{name}" and len(name) > 30
        assert b"camera" not in data and Image.open(io.BytesIO(data)).size == (1600, 400)


def test_bytes_that_are_not_an_image_are_not_published(tmp_path):
    with pytest.raises(BadQuery), Site(replies_with({})) as site:
        lens_search("serper-lens", site.url, b"GIF89a", PublishFolder(str(tmp_path), "https://example.org"))
    assert os.listdir(tmp_path) == []


# Fallback


class InMemoryProvider:
    """An in-memory provider that counts its searches."""

    def __init__(self, name: str, error: Exception | None = None):
        self.name, self._error, self.asked = name, error, 0

    async def search(self, query, k):
        self.asked += 1
        if self._error:
            raise self._error
        return [SearchHit(f"{self.name}: {query}")] * k


def test_the_first_provider_that_answers_does_and_a_later_one_says_degraded():
    best, second, third = InMemoryProvider("best"), InMemoryProvider("second"), InMemoryProvider("third")
    answer = asyncio.run(ProviderChain([best, second, third]).search("q", 2))
    assert (answer.provider, answer.degraded, answer.message, len(answer.items)) == ("best", False, "", 2)
    assert (second.asked, third.asked) == (0, 0)
    down = InMemoryProvider("down", SearchError("down gave no answer"))
    answer = asyncio.run(ProviderChain([down, second, third]).search("q", 1))
    assert (answer.provider, answer.degraded, answer.message) == ("second", True, "down gave no answer")
    assert third.asked == 0


def test_a_bad_query_is_answered_by_nobody_and_an_outage_of_all_names_all():
    second = InMemoryProvider("second")
    with pytest.raises(BadQuery):
        asyncio.run(ProviderChain([InMemoryProvider("picky", BadQuery("no word")), second]).search("q", 1))
    assert second.asked == 0
    with pytest.raises(SearchError, match="a is down; b is down"):
        asyncio.run(ProviderChain([InMemoryProvider(n, SearchError(f"{n} is down")) for n in "ab"]).search("q", 1))


def test_a_programming_error_is_not_taken_for_an_outage():
    with pytest.raises(ZeroDivisionError), contextlib.suppress(SearchError):
        asyncio.run(
            ProviderChain([InMemoryProvider("broken", ZeroDivisionError()), InMemoryProvider("second")]).search("q", 1)
        )
