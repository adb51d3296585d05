"""Tests the command line options of search: parsing, error messages and the handling of keys."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import uuid

import pytest
from PIL import Image

from tests.tools_service.search.search_site import Site, replies_with
from tools_service.client import TextSearchRequest, ToolsClient, start_local_service
from tools_service.proto import tools_pb2 as pb
from tools_service.search.providers import lens, web
from tools_service.search.service import SearchProviders
from tools_service.server import options as command_line
from tools_service.server.options import InvalidOptions

KEYS = {
    name: f"key-of-{name.lower()}-1234567890"
    for name in ("SERPER_API_KEY", "SERPAPI_API_KEY", "BRAVE_API_KEY", "TAVILY_API_KEY")
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def parse(line: str):
    return command_line.parse(line.split()).search


def test_without_options_there_is_no_provider_and_no_key_is_taken(environment):
    environment.setenv("SERPER_API_KEY", KEYS["SERPER_API_KEY"])
    providers = SearchProviders.open(parse(""))
    assert providers.chain_descriptions() == [] and os.environ["SERPER_API_KEY"] == KEYS["SERPER_API_KEY"]


def test_providers_keep_their_order_and_their_own_rates(environment):
    for name, key in KEYS.items():
        environment.setenv(name, key)
    options = parse(
        "--text-providers brave,searxng=http://10.0.0.7:8080/search,serper --search-rate serper=3.5 --search-attempts 7"
    )
    assert options.text == (("brave", ""), ("searxng", "http://10.0.0.7:8080/search"), ("serper", ""))
    assert {name: policy.rate for name, policy in options.retry_policies.items()} == {
        "brave": 1,
        "searxng": 5,
        "serper": 3.5,
    }
    assert {policy.attempts for policy in options.retry_policies.values()} == {7}


def test_a_key_comes_from_a_file_or_the_environment_and_leaves_the_environment(environment, tmp_path):
    (tmp_path / "key").write_text("  from-a-file-0123456789\n")
    for name, key in KEYS.items():
        environment.setenv(name, key)
    options = parse(
        f"--text-providers serper,brave --image-providers serper-lens --search-key serper={tmp_path / 'key'} "
        f"--image-urls {tmp_path / 'urls.jsonl'}"
    )
    secrets = {name: key.get_secret_value() for name, key in options.keys.items()}
    assert secrets == {"SERPER_API_KEY": "from-a-file-0123456789", "BRAVE_API_KEY": KEYS["BRAVE_API_KEY"]}
    assert "SERPER_API_KEY" not in os.environ and "BRAVE_API_KEY" not in os.environ and "TAVILY_API_KEY" in os.environ
    shown = f"{options!r} {options!s} {vars(options)}"
    assert not any(key in shown for key in secrets.values())


def test_the_old_name_of_the_option_image_urls_works(environment):
    environment.setenv("SERPER_API_KEY", KEYS["SERPER_API_KEY"])
    assert parse("--image-providers serper-lens --picture-urls table.jsonl").image_urls == "table.jsonl"


def test_replaying_needs_no_key_and_no_public_images():
    options = parse(
        "--text-providers serper --image-providers serpapi-lens --search-cache x.sqlite --search-cache-mode replay"
    )
    assert options.keys == {} and options.cache_mode == "replay"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--text-providers gogle", "'gogle' is none of serper, serpapi, brave"),
        ("--text-providers serper-lens", "is none of"),
        ("--text-providers searxng=http://h/x,searxng=http://i/x", "listed twice"),
        ("--text-providers serper", "set SERPER_API_KEY, or give --search-key serper=FILE"),
        ("--image-providers serpapi-lens --image-urls x", "set SERPAPI_API_KEY, or give --search-key serpapi=FILE"),
        ("--text-providers searxng", "give searxng=http://HOST:PORT"),
        ("--text-providers retriever=localhost:8000", "http or https address"),
        ("--text-providers retriever=http://user:word@host/x", "without query or password"),
        ("--text-providers serper=http://example.org/search", "must be https"),
        ("--text-providers serper --search-key serper=/absent/key", "/absent/key cannot be read"),
        ("--search-key serper", "must be NAME=VALUE"),
        ("--search-key google=x", "one of serper, serpapi, brave, tavily"),
        ("--search-rate brave=often --text-providers retriever=http://h/x", ""),
        ("--search-rate retriever=often --text-providers retriever=http://h/x", "must be a number above 0"),
        ("--search-rate retriever=0 --text-providers retriever=http://h/x", "must be a number above 0"),
        ("--search-rate retriever=nan --text-providers retriever=http://h/x", "must be a number above 0"),
        ("--search-timeout-s 0", "--search-timeout-s 0 must be above 0"),
        ("--search-budget-s -1", "--search-budget-s -1 must be above 0"),
        ("--search-attempts 0", "--search-attempts 0 must be above 0"),
        ("--search-reply-mb 0", "--search-reply-mb 0 must be above 0"),
        (
            "--search-budget-s 30 --text-providers retriever=http://h/x,searxng=http://h/y",
            "lower it to 25 or list fewer",
        ),
        ("--search-country usa", "--search-country 'usa' must be two letters"),
        ("--search-language e1", "must be two letters"),
        ("--search-proxy 10.0.0.1:3128", "--search-proxy"),
        ("--search-cache-mode replay", "needs --search-cache FILE"),
        ("--image-providers mmsearch-r1 --mmsearch-rows x", "needs =FILE"),
        ("--image-providers mmsearch-r1=cache.json", "belong together"),
        ("--mmsearch-rows x", "belong together"),
        ("--publish-folder /tmp", "belong together"),
        ("--publish-folder /tmp --publish-url https://e.org --image-urls x", "exclude one another"),
        ("--embedding module:function", "give --image-index"),
    ],
)
def test_bad_options_are_refused_with_what_to_do(line, named):
    if not named:
        assert parse(line).retry_policies  # a rate for an unused provider is ignored
        return
    with pytest.raises(InvalidOptions) as error:
        parse(line)
    assert named in str(error.value)


def test_lens_publishes_no_image_unless_configured(environment):
    environment.setenv("SERPER_API_KEY", KEYS["SERPER_API_KEY"])
    with pytest.raises(InvalidOptions, match="--publish-folder DIR and --publish-url URL to show them to the world"):
        parse("--image-providers serper-lens")


@pytest.mark.parametrize(
    ("provider", "advice"), [("searxng", "json under search.formats"), ("serper", "check its key and plan")]
)
def test_a_refused_access_says_what_the_operator_can_do(environment, provider, advice):
    environment.setenv("SERPER_API_KEY", KEYS["SERPER_API_KEY"])

    async def ask(url: str) -> pb.Result:
        providers = SearchProviders.open(parse(f"--text-providers {provider}={url}/search"))
        try:
            return await providers.search(pb.SearchRequest(request_id="r", k=2, text=pb.TextQuery(query="heron")))
        finally:
            await providers.close()

    with Site(replies_with(b"<html>forbidden", 403)) as site:
        result = asyncio.run(ask(site.url))
    assert result.status == pb.UNAVAILABLE and "403" in result.message and advice in result.message


@pytest.mark.parametrize("content", ["", "\n", "two words", "schlüssel", "a\x00b"])
def test_what_is_no_key_is_refused_without_showing_it(tmp_path, content):
    (tmp_path / "key").write_text(content)
    with pytest.raises(InvalidOptions, match="holds no key") as error:
        parse(f"--text-providers serper --search-key serper={tmp_path / 'key'}")
    assert not content.strip() or content not in str(error.value)


def test_help_names_every_provider_and_every_key(capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.parse(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*web.APIS, *lens.APIS, *KEYS, "mmsearch-r1", "replay"))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--text-index absent", "absent is neither a text index"),
        ("--image-index absent", "absent does not exist"),
        ("--text-providers serper --search-cache absent.sqlite --search-cache-mode replay", "record one first"),
        ("--image-index {folder} --embedding no.such.module:function", "no.such.module"),
    ],
)
def test_what_cannot_be_opened_is_named(line, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        SearchProviders.open(parse(line.format(folder=tmp_path)))


def test_lens_and_the_released_cache_come_before_the_image_index(environment, tmp_path):
    """Searches with the image chain of the command line, recording, then in replay mode."""
    image = encode(Image.new("RGB", (64, 48), "teal"))
    (tmp_path / "teal.png").write_bytes(image)
    (tmp_path / "table.jsonl").write_text(
        json.dumps({"image": "teal.png", "title": "in the index", "url": "https://e.org/teal.png"})
    )
    (tmp_path / "cache.json").write_text(
        json.dumps({"fvqa_train_3": {"tool_returned_web_title": ["released"], "cached_images_path": ["teal.png"]}})
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps({"images": ["teal.png"], "extra_info": {"index": "fvqa_train_3"}}))
    environment.setenv("SERPER_API_KEY", KEYS["SERPER_API_KEY"])
    inline = "data:image/png;base64," + base64.b64encode(image).decode()
    organic = [{"title": "on the web", "link": "https://example.org/teal", "thumbnailUrl": inline}]

    def search(line: str, data: bytes = image) -> pb.Result:
        async def ask():
            providers = SearchProviders.open(parse(line))
            try:
                return await providers.search(pb.SearchRequest(request_id="r", k=2, image=pb.ImageQuery(image=data)))
            finally:
                await providers.close()

        return asyncio.run(ask())

    index = f"--image-index {tmp_path}/table.jsonl"
    released = f"--image-providers mmsearch-r1={tmp_path}/cache.json --mmsearch-rows {tmp_path}/rows.jsonl {index}"
    recorded = f"--search-cache {tmp_path}/answers {index} --image-providers serper-lens"
    with Site(replies_with({"organic": organic}), replies_with({}, 401)) as site:
        live = search(f"{recorded}={site.url}/lens --image-urls {tmp_path}/table.jsonl")
        assert site.requests[0].json["url"] == "https://e.org/teal.png"
    replayed = search(f"{recorded} --search-cache-mode replay")
    other = encode(Image.new("RGB", (64, 48), "pink"))
    assert [(r.provider.split(":")[0], r.items[0].title, r.degraded, r.cached) for r in (
        live, replayed, search(f"{recorded} --search-cache-mode replay", other), search(released), search(released, other),
    )] == [
        ("serper-lens", "on the web", False, False), ("serper-lens", "on the web", False, True), ("image", "in the index", True, False),
        ("mmsearch-r1", "released", False, False), ("image", "in the index", True, False),
    ]  # fmt: skip
    assert live.items[0].thumbnail == replayed.items[0].thumbnail
    assert Image.open(io.BytesIO(live.items[0].thumbnail)).size == (64, 48)
    assert search(f"{recorded} --search-cache-mode replay", b"not an image").status == pb.REFUSED


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def answers(service, *queries: str):
    client = ToolsClient(service.address)
    try:
        asked = [uuid.uuid4().hex for _ in queries]
        client.submit([TextSearchRequest(name, query, 3) for name, query in zip(asked, queries, strict=True)])
        found = {}
        while len(found) < len(queries):
            found |= {result.request_id: result for result in client.poll(60)}
        return [found[name] for name in asked], client.info()
    finally:
        client.close()


def test_a_service_records_replays_and_falls_back_and_never_reveals_its_key(environment, tmp_path):
    """Runs end to end: command line, live provider, recording; then offline from the cassette and the index."""
    (tmp_path / "corpus.jsonl").write_text('{"title": "Bittern", "text": "A brown bird of the reeds."}\n')
    shared = [
        "--no-sandbox",
        "--text-index",
        str(tmp_path / "corpus.jsonl"),
        "--search-cache",
        str(tmp_path / "answers"),
    ]
    environment.setenv("SERPER_API_KEY", KEYS["SERPER_API_KEY"])
    organic = [{"title": "Heron", "link": "https://example.org/heron", "snippet": "A grey bird."}]
    with Site(
        replies_with({"searchParameters": {}, "organic": organic}), replies_with({"message": "over"}, 400)
    ) as site:
        service = start_local_service(
            log_path=tmp_path / "log", extra_args=[*shared, "--text-providers", f"serper={site.url}/search"]
        )
        try:
            (live,), _ = answers(service, "heron")
            (down, again), info = answers(service, "brown bird", "heron")
        finally:
            service.stop()
        assert site.requests[0].headers["x-api-key"] == KEYS["SERPER_API_KEY"] and [
            r.json["q"] for r in site.requests
        ] == [
            "heron",
            "brown bird",
        ]
    environment.delenv("SERPER_API_KEY")
    replayer = start_local_service(
        log_path=tmp_path / "log2", extra_args=[*shared, "--text-providers", "serper", "--search-cache-mode", "replay"]
    )
    try:
        (replayed, other), _ = answers(replayer, "heron", "brown bird")
    finally:
        replayer.stop()
    for result, provider, degraded, cached, title in (
        (live, "serper", False, False, "Heron"), (again, "serper", False, True, "Heron"), (down, "text: tantivy, 1 documents", True, False, "Bittern"),
        (replayed, "serper", False, True, "Heron"), (other, "text: tantivy, 1 documents", True, False, "Bittern"),
    ):  # fmt: skip
        assert (result.provider, result.degraded, result.cached) == (provider, degraded, cached)
        assert [item.title for item in result.items] == [title]
    assert "400" in down.message and "never recorded" in other.message
    assert info["search"]["serper"]["requests"] == 2 and info["search"]["serper"]["circuit"] == "closed"
    said = f"{service.banner} {replayer.banner} {info} {live} {down} {(tmp_path / 'log').read_text()} {(tmp_path / 'log2').read_text()}"
    assert KEYS["SERPER_API_KEY"] not in said and "serper → text: tantivy" in said
