"""Parses the command line options of search: providers, their order, retry policies, cassette and keys."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import math
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pydantic import SecretStr

from tools_service.search import recording_store
from tools_service.search.http import api_keys
from tools_service.search.http.request import RetryPolicy
from tools_service.search.providers import lens, web

TEXT_PROVIDERS = tuple(web.APIS)
IMAGE_PROVIDERS = (*lens.APIS, "mmsearch-r1")
_APIS: dict[str, web.TextSearchApi | lens.LensApi] = {**web.APIS, **lens.APIS}
_ACCOUNT_OF_VARIABLE = {api.key_variable: name.removesuffix("-lens") for name, api in _APIS.items() if api.key_variable}
_CALLER_TIMEOUT_S = 50.0  # search time that callers tolerate; their own timeout is one minute


@dataclass(frozen=True)
class SearchOptions:
    """The options of search. `text` and `image` hold (name, URL or file) of live providers, best first."""

    text_index: str = ""
    image_index: str = ""
    text: tuple[tuple[str, str], ...] = ()
    image: tuple[tuple[str, str], ...] = ()
    keys: dict[str, SecretStr] = field(default_factory=dict)  # by environment variable
    retry_policies: dict[str, RetryPolicy] = field(default_factory=dict)  # by provider
    locale: web.Locale = web.Locale()
    proxy: str = field(default="", repr=False)  # not shown: the URL may hold a password
    cache: str = ""
    cache_mode: recording_store.Mode = "record"
    image_urls: str = ""
    publish: tuple[str, str] = ("", "")  # folder, URL
    mmsearch_rows: str = ""
    embedding: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of search, which `pop_search_options` reads."""
    group = parser.add_argument_group(
        "search",
        "Providers of a kind are asked in the order given, the index last; a later one's answer is marked degraded.",
    )
    add = group.add_argument
    add(
        "--text-index",
        default="",
        metavar="PATH",
        help="folder made by `python -m tools_service.cli.index text`, or a corpus (JSONL, Parquet, package:NAME)",
    )
    add(
        "--image-index",
        default="",
        metavar="PATH",
        help="folder made by `python -m tools_service.cli.index image`, or images (folder, JSONL, Parquet)",
    )
    add(
        "--text-providers",
        default="",
        metavar="NAME[=URL],...",
        help=f"live text search: {', '.join(TEXT_PROVIDERS)}; searxng and retriever need =URL",
    )
    add(
        "--image-providers",
        default="",
        metavar="NAME[=URL],...",
        help=f"image search: {', '.join(IMAGE_PROVIDERS)}; the last is =FILE, the released JSON, and needs --mmsearch-rows",
    )
    add(
        "--search-key",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help=f"file with the key of {', '.join(sorted(set(_ACCOUNT_OF_VARIABLE.values())))} (otherwise: {', '.join(sorted(_ACCOUNT_OF_VARIABLE))})",
    )
    add("--search-rate", action="append", default=[], metavar="NAME=N", help="requests a second to a provider, at most")
    add(
        "--search-timeout-s",
        type=float,
        default=RetryPolicy.timeout_s,
        metavar="S",
        help="for one attempt (default %(default)g)",
    )
    add(
        "--search-budget-s",
        type=float,
        default=RetryPolicy.budget_s,
        metavar="S",
        help="for one provider's attempts, queueing and waits together (default %(default)g)",
    )
    add(
        "--search-attempts",
        type=int,
        default=RetryPolicy.attempts,
        metavar="N",
        help="at one provider (default %(default)d)",
    )
    add(
        "--search-reply-mb",
        type=float,
        default=RetryPolicy.reply_bytes / 2**20,
        metavar="MB",
        help="largest reply, unpacked (default %(default)g)",
    )
    add("--search-country", default="us", metavar="CC", help="two letters (default %(default)s)")
    add("--search-language", default="en", metavar="LL", help="two letters (default %(default)s)")
    add("--search-proxy", default="", metavar="URL", help="HTTP proxy on the way to providers")
    add(
        "--search-cache",
        default="",
        metavar="FILE",
        help="recording of live answers (SQLite), made where it does not exist",
    )
    add(
        "--search-cache-mode",
        choices=recording_store.MODES,
        default="record",
        help="record: answer from the recording, ask and keep what it lacks; replay: never ask; refresh: always ask and keep",
    )
    add(
        "--image-urls",
        "--picture-urls",
        default="",
        metavar="FILE",
        help='for Google Lens: table of images that are already public, rows of "url" and "sha256" or "image"',
    )
    add(
        "--publish-folder",
        default="",
        metavar="DIR",
        help="for Google Lens: SHOWS IMAGES TO THE WORLD, each in this folder during its search",
    )
    add("--publish-url", default="", metavar="URL", help="address under which the web sees --publish-folder")
    add(
        "--mmsearch-rows",
        default="",
        metavar="FILE",
        help="data set (Parquet, JSONL) of the images that mmsearch-r1 has results for",
    )
    add(
        "--embedding",
        default="",
        metavar="MODULE:FUNCTION",
        help="model that computed the vectors of the image index (see tools_service.search.indexing.embedding)",
    )


def pop_search_options(given: dict) -> SearchOptions:
    """Removes the options of `add_arguments` from parsed arguments. Raises ValueError naming option and fix."""
    text = _parse_providers("--text-providers", given.pop("text_providers"), TEXT_PROVIDERS)
    image = _parse_providers("--image-providers", given.pop("image_providers"), IMAGE_PROVIDERS)
    for name in ("search_timeout_s", "search_budget_s", "search_attempts", "search_reply_mb"):
        if not 0 < given[name] < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {given[name]:g} must be above 0")
    cache, mode = given.pop("search_cache"), given.pop("search_cache_mode")
    if mode != "record" and not cache:
        raise ValueError(f"--search-cache-mode {mode} needs --search-cache FILE")
    live = {} if mode == "replay" else {name: web.APIS.get(name) or lens.APIS.get(name) for name, _ in (*text, *image)}
    publish = given.pop("publish_folder"), given.pop("publish_url")
    options = SearchOptions(
        text_index=given.pop("text_index"), image_index=given.pop("image_index"), text=text, image=image,
        keys=_load_keys(live, given.pop("search_key")), retry_policies=_retry_policies(text, image, given),
        locale=web.Locale(*(_two_letter_code(name, given.pop(name)) for name in ("search_country", "search_language"))),
        proxy=_check_proxy(given.pop("search_proxy")), cache=cache, cache_mode=mode,
        image_urls=given.pop("image_urls"), publish=publish,
        mmsearch_rows=given.pop("mmsearch_rows"), embedding=given.pop("embedding"),
    )  # fmt: skip
    _check_lens_options(options)
    if ("mmsearch-r1" in dict(image)) != bool(options.mmsearch_rows):
        raise ValueError(
            "--image-providers mmsearch-r1=FILE and --mmsearch-rows FILE belong together: give both or neither"
        )
    if options.embedding and not options.image_index:
        raise ValueError("--embedding is the model of an image index: give --image-index")
    return options


def _parse_providers(option: str, listed: str, known: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for part in filter(None, listed.split(",")):
        name, _, where = part.strip().partition("=")
        if name not in known:
            raise ValueError(f"{option}: {name!r} is none of {', '.join(known)}")
        if name in found:
            raise ValueError(f"{option}: {name} is listed twice")
        if name == "mmsearch-r1":
            if not where:
                raise ValueError(f"{option}: {name} needs =FILE, the released JSON file")
        else:
            _check_url(option, name, where)
        found[name] = where
    return tuple(found.items())


def _check_url(option: str, name: str, url: str) -> None:
    api = web.APIS.get(name) or lens.APIS[name]
    if not url and not api.url:
        raise ValueError(f"{option}: {name} has no public address; give {name}=http://HOST:PORT/...")
    if not url:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ValueError(f"{option}: {name} needs a plain http or https address, without query or password")
    if api.key_variable and parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ValueError(f"{option}: {name} sends a key, so its address must be https, or on this machine")


def _load_keys(live: dict, files: list[str]) -> dict[str, SecretStr]:
    by_account = {account: variable for variable, account in _ACCOUNT_OF_VARIABLE.items()}
    by_variable = {
        by_account[name]: path for name, path in _parse_pairs("--search-key", files, tuple(by_account)).items()
    }
    found: dict[str, SecretStr] = {}
    for name, api in live.items():
        if api is None or not api.key_variable:
            continue
        key = found.get(api.key_variable) or api_keys.take_api_key(api.key_variable, by_variable)
        if key is None:
            raise ValueError(
                f"{name} needs a key: set {api.key_variable}, or give --search-key {_ACCOUNT_OF_VARIABLE[api.key_variable]}=FILE"
            )
        found[api.key_variable] = key
    return found


def _retry_policies(text: tuple, image: tuple, given: dict) -> dict[str, RetryPolicy]:
    apis = {name: _APIS[name] for name, _ in (*text, *image) if name != "mmsearch-r1"}
    rates = _parse_pairs("--search-rate", given.pop("search_rate"), (*web.APIS, *lens.APIS))
    base_policy = RetryPolicy(
        timeout_s=given.pop("search_timeout_s"), budget_s=given.pop("search_budget_s"),
        attempts=given.pop("search_attempts"), reply_bytes=int(given.pop("search_reply_mb") * 2**20),
    )  # fmt: skip
    for chain in (text, image):
        longest_search_s = base_policy.budget_s * sum(name in apis for name, _ in chain)
        if longest_search_s > _CALLER_TIMEOUT_S:
            raise ValueError(
                f"{len(chain)} providers of --search-budget-s {base_policy.budget_s:g} may take {longest_search_s:g} s, but callers wait "
                f"for {_CALLER_TIMEOUT_S:g}: lower it to {_CALLER_TIMEOUT_S / len(chain):g} or list fewer"
            )
    retry_policies = {}
    for name, api in apis.items():
        try:
            retry_policies[name] = dataclasses.replace(base_policy, rate=float(rates.get(name, api.rate)))
        except ValueError:
            raise ValueError(f"--search-rate {name}={rates.get(name)} must be a number above 0") from None
    return retry_policies


def _parse_pairs(option: str, given: list[str], known: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known or not value:
            raise ValueError(f"{option} {text!r} must be NAME=VALUE, the name one of {', '.join(known)}")
        pairs[name] = value
    return pairs


def _two_letter_code(name: str, code: str) -> str:
    if len(code) != 2 or not code.isascii() or not code.isalpha():
        raise ValueError(f"--{name.replace('_', '-')} {code!r} must be two letters")
    return code.lower()


def _check_proxy(url: str) -> str:
    if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
        raise ValueError(
            "--search-proxy must be http://HOST:PORT or https://HOST:PORT"
        )  # the URL is not shown: it may hold a password
    return url


def _check_lens_options(options: SearchOptions) -> None:
    folder, url = options.publish
    if bool(folder) != bool(url):
        raise ValueError("--publish-folder and --publish-url belong together: give both or neither")
    if folder and options.image_urls:
        raise ValueError("--image-urls and --publish-folder exclude one another")
    asked = [name for name, _ in options.image if name in lens.APIS]
    if asked and options.cache_mode != "replay" and not folder and not options.image_urls:
        raise ValueError(
            f"{asked[0]} takes the public URL of an image: give --image-urls FILE for images that have one, "
            "or --publish-folder DIR and --publish-url URL to show them to the world"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
