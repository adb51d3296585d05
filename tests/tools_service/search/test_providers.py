"""Live providers: how each is asked, by its public reference, and what is made of an answer in its form."""

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

from tests.tools_service.search.search_site import Site, says
from tools_service.search.chain import Chain
from tools_service.search.http.public_urls import PublishFolder, UrlTable
from tools_service.search.http.request import Policy
from tools_service.search.http.thumbnails import Thumbnails, is_public
from tools_service.search.http.transport import Transport
from tools_service.search.provider import BadQuery, Item, SearchError
from tools_service.search.providers.lens import LensSearch
from tools_service.search.providers.web import APIS, Locale, WebSearch

KEY = "an-account-key"

# Shapes as their public references describe them, with more fields than are used.
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


def ask(name: str, url: str, query: str = "grey heron", k: int = 3) -> list[Item]:
    async def search():
        transport = Transport(name, Policy(attempts=1))
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
    with Site(says(shape)) as site:
        first, second = ask(name, site.url)
    request = site.seen[0]
    assert request.path == "/found/here" and asked_rightly(request), request
    assert KEY not in request.path and (name == "serpapi" or KEY not in str(request.query))
    assert (first.title, first.snippet) == ("Grey heron", "A wading bird.")
    assert first.url == ("" if name == "retriever" else "https://example.org/heron")
    assert first.date == ("" if name == "retriever" else "Mar 3, 2024")
    assert second == Item("Ardea", "" if name == "retriever" else "https://example.org/ardea", score=second.score)
    if name in ("tavily", "retriever"):
        assert (first.score, second.score) == (0.98, 0.5)


@pytest.mark.parametrize("name", CASES)
def test_no_more_results_than_asked_for(name):
    with Site(says(CASES[name][0])) as site:
        assert len(ask(name, site.url, k=1)) == 1


def test_nothing_found_is_told_from_a_search_that_failed():
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
        with Site(says(shape)) as site:
            assert ask(name, site.url) == []
    failed = {
        "serpapi": {"search_metadata": {"status": "Error"}, "error": "We could not get it."},
        "brave": {"type": "ErrorResponse", "error": {"code": "RATE_LIMITED"}},
        "searxng": {"query": "x", "results": [], "unresponsive_engines": [["google", "CAPTCHA"], ["bing", "timeout"]]},
        "retriever": {"result": []},
        "tavily": {"detail": {"error": "Invalid API key"}},
    }
    for name, shape in failed.items():
        with Site(says(shape)) as site, pytest.raises(SearchError):
            ask(name, site.url)


@pytest.mark.parametrize(("name", "query"), [
    ("brave", "x" * 401), ("brave", "a " * 51), ("tavily", "x" * 401), ("serper", ""), ("retriever", " \n\u3000"),
])  # fmt: skip
def test_a_query_that_the_provider_would_not_take_is_the_callers_mistake(name, query):
    with Site(says(CASES[name][0])) as site:
        with pytest.raises(BadQuery, match="400" if query.strip() else "empty"):
            ask(name, site.url, query)
        assert site.seen == []


def test_results_are_plain_text_of_bounded_length_with_web_addresses_alone():
    organic = [
        {"title": "a\x00b\x1b[31m\u0085" + "t" * 1000, "link": "javascript:alert(1)", "snippet": "s" * 100_000, "date": "d" * 500},
        {"title": "x", "link": "https://example.org/ space"}, {"title": "x", "link": "https://example.org/" + "u" * 5000},
        {"title": "x", "link": "file:///etc/passwd"}, {"title": "x", "link": "HTTPS://EXAMPLE.ORG/"},
    ]  # fmt: skip
    with Site(says({"searchParameters": {}, "organic": organic})) as site:
        items = ask("serper", site.url, k=9)
    assert items[0].title.startswith("a b [31m ttt") and [len(t) for t in (items[0].title, items[0].snippet, items[0].date)] == [
        300, 2000, 60]  # fmt: skip
    assert [item.url for item in items] == ["", "", "", "", "HTTPS://EXAMPLE.ORG/"]


# Google Lens


def encode(color, kind: str = "PNG", size=(640, 480), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind, **options)
    return buffer.getvalue()


def look(name: str, url: str, image: bytes, pictures, k: int = 5, allowed=lambda address, port: True) -> list[Item]:
    async def search():
        transport, thumbnails = Transport(name, Policy(attempts=1)), Thumbnails(allowed)
        try:
            lens = LensSearch(name, transport, SecretStr(KEY), pictures, thumbnails, f"{url}/lens", Locale("de", "fr"))
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
    """A table of public URLs, and a picture that is in it."""
    image = encode("teal")
    rows = [{"sha256": hashlib.sha256(image).hexdigest(), "url": "https://example.org/teal.png"}]
    (tmp_path / "urls.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return UrlTable.open(str(tmp_path / "urls.jsonl")), image


@pytest.mark.parametrize("name", ["serpapi-lens", "serper-lens"])
def test_lens_is_given_the_address_of_the_picture_and_results_carry_small_pictures(name, table):
    with Site(says(encode("red"), content_type="image/png")) as pictures:
        inline = "data:image/jpeg;base64," + base64.b64encode(encode("blue", "JPEG")).decode()
        with Site(says(lens_shape(name, [f"{pictures.url}/a.png", inline, None, f"{pictures.url}/b.png"]))) as site:
            items = look(name, site.url, table[1], table[0], k=3)
        assert [request.path for request in pictures.seen] == ["/a.png"]  # the fourth was not asked for
        assert pictures.seen[0].headers["host"] == f"127.0.0.1:{pictures.port}" and KEY not in str(pictures.seen)
    asked = site.seen[0]
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
    with Site(says(encode("red"), content_type="image/png")) as inside:
        urls = [
            f"{inside.url}/x", f"http://localhost:{inside.port}/x", f"http://[::ffff:127.0.0.1]:{inside.port}/x", "file:///etc/passwd",
            "http://169.254.169.254/latest/meta-data/", "ftp://example.org/x", "http://user:word@127.0.0.1/x", "http://[", "data:text/html,x",
        ]  # fmt: skip
        with Site(says(lens_shape("serper-lens", urls))) as site:
            items = look("serper-lens", site.url, table[1], table[0], k=20, allowed=is_public)
        assert len(items) == len(urls) and not any(item.thumbnail for item in items)
        assert inside.seen == []


@pytest.mark.parametrize("answer", [
    says(b"no picture"), says(b"", 404), says(encode("red"), 302, location="/y"), says(b"x" * (3 << 20)),
    says(encode("red"), packed=True), says(encode("red")[:60]),
])  # fmt: skip
def test_a_thumbnail_that_cannot_be_had_leaves_the_result_without(answer, table):
    with Site(answer) as pictures, Site(says(lens_shape("serper-lens", [f"{pictures.url}/a"]))) as site:
        (item,) = look("serper-lens", site.url, table[1], table[0])
        assert (item.title, item.thumbnail) == ("Match 0", b"") and len(pictures.seen) == 1


def test_a_host_is_asked_at_the_address_that_was_checked_and_must_prove_its_name():
    """The connection goes to an address, not to a name that may resolve differently; the certificate is still the name's."""
    authority = trustme.CA()

    def served(name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        return context

    async def fetch(*urls: str) -> list[bytes]:
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        thumbnails = Thumbnails(lambda address, port: checked.append(address) or True, trusting)
        try:
            return await thumbnails.fetch(urls)
        finally:
            await thumbnails.close()

    checked: list[str] = []
    answer = says(encode("red"), content_type="image/png")
    with Site(answer, tls=served("localhost")) as right, Site(answer, tls=served("elsewhere.example")) as wrong:
        found = asyncio.run(fetch(f"https://localhost:{right.port}/x", f"https://localhost:{wrong.port}/x"))
        assert [bool(data) for data in found] == [True, False]
        assert right.seen[0].headers["host"] == f"localhost:{right.port}" and wrong.seen == []
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


def test_a_picture_without_an_address_is_not_searched_for(table):
    with Site(says(lens_shape("serper-lens", []))) as site:
        with pytest.raises(SearchError, match="--picture-urls"):
            look("serper-lens", site.url, encode("pink"), table[0])
        assert site.seen == []


def test_a_published_picture_is_small_without_metadata_and_gone_afterwards(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "camera of somebody"
    image = encode("teal", "JPEG", size=(4000, 1000), exif=exif)
    shown: list[tuple[str, bytes]] = []

    def answer(handler):
        names = os.listdir(tmp_path)
        shown.extend((name, (tmp_path / name).read_bytes()) for name in names)
        says(lens_shape("serper-lens", []) if len(shown) == 1 else {}, 200 if len(shown) == 1 else 403)(handler)

    pictures = PublishFolder(str(tmp_path), "https://pictures.example.org/now/")
    with Site(answer) as site:
        assert look("serper-lens", site.url, image, pictures) == []
        with pytest.raises(SearchError):
            look("serper-lens", site.url, image, pictures)
    assert os.listdir(tmp_path) == [] and len(shown) == 2 and shown[0][0] != shown[1][0]
    for request, (name, data) in zip(site.seen, shown, strict=True):
        assert request.json["url"] == f"https://pictures.example.org/now/{name}" and len(name) > 30
        assert b"camera" not in data and Image.open(io.BytesIO(data)).size == (1600, 400)


def test_what_is_no_picture_is_not_published(tmp_path):
    with pytest.raises(BadQuery), Site(says({})) as site:
        look("serper-lens", site.url, b"GIF89a", PublishFolder(str(tmp_path), "https://example.org"))
    assert os.listdir(tmp_path) == []


# Fallback


class Known:
    """A provider in memory."""

    def __init__(self, name: str, error: Exception | None = None):
        self.name, self._error, self.asked = name, error, 0

    async def search(self, query, k):
        self.asked += 1
        if self._error:
            raise self._error
        return [Item(f"{self.name}: {query}")] * k


def test_the_first_provider_that_answers_does_and_a_later_one_says_degraded():
    best, second, third = Known("best"), Known("second"), Known("third")
    answer = asyncio.run(Chain([best, second, third]).search("q", 2))
    assert (answer.provider, answer.degraded, answer.message, len(answer.items)) == ("best", False, "", 2)
    assert (second.asked, third.asked) == (0, 0)
    down = Known("down", SearchError("down gave no answer"))
    answer = asyncio.run(Chain([down, second, third]).search("q", 1))
    assert (answer.provider, answer.degraded, answer.message) == ("second", True, "down gave no answer")
    assert third.asked == 0


def test_a_bad_query_is_answered_by_nobody_and_an_outage_of_all_names_all():
    second = Known("second")
    with pytest.raises(BadQuery):
        asyncio.run(Chain([Known("picky", BadQuery("no word")), second]).search("q", 1))
    assert second.asked == 0
    with pytest.raises(SearchError, match="a is down; b is down"):
        asyncio.run(Chain([Known(n, SearchError(f"{n} is down")) for n in "ab"]).search("q", 1))


def test_a_programming_error_is_not_taken_for_an_outage():
    with pytest.raises(ZeroDivisionError), contextlib.suppress(SearchError):
        asyncio.run(Chain([Known("broken", ZeroDivisionError()), Known("second")]).search("q", 1))
