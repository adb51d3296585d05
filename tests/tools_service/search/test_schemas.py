"""Tests schemas with mutated replies: any reply gives bounded plain-text results or an error."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.tools_service.search.test_providers import CASES, lens_shape
from tools_service.proto import tools_pb2 as pb
from tools_service.search.http import schemas
from tools_service.search.provider import SearchError
from tools_service.search.providers import web

SHAPES = {name: (web.APIS[name].reply_schema, shape) for name, (shape, _) in CASES.items()} | {
    "serpapi-lens": (schemas.SerpApiLensReply, lens_shape("serpapi-lens", ["https://example.org/a.png", None])),
    "serper-lens": (schemas.SerperLensReply, lens_shape("serper-lens", ["https://example.org/a.png", None])),
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


def paths(value, path=()):
    """Yields the paths to all parts of `value`."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*path, key))


def altered(shape, path, replacement):
    """Returns `shape` with the part at `path` replaced, or removed if `replacement` is `...`."""
    if not path:
        return {} if replacement is ... else replacement
    shape = copy.deepcopy(shape)
    holder = shape
    for key in path[:-1]:
        holder = holder[key]
    if replacement is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = replacement
    return shape


def read(schema, value):
    """Returns the results, or None if the reply is rejected."""
    try:
        reply = schema.model_validate_json(json.dumps(value).encode("utf-8", "replace"))
        return [item for item, _ in reply.matches()] if hasattr(reply, "matches") else reply.items()
    except (ValidationError, SearchError):
        return None


def check(items) -> None:
    for item in items or ():
        assert len(item.title) <= 300 and len(item.snippet) <= 2000 and len(item.date) <= 60 and len(item.url) <= 2048
        assert math.isfinite(item.score)
        assert item.url == "" or item.url.lower().startswith(("http://", "https://"))
        assert all(c >= " " or c == "\n" for c in item.title + item.snippet + item.date + item.url)
        # Must be valid in a protobuf message.
        pb.SearchItem(title=item.title, url=item.url, snippet=item.snippet, date=item.date, score=item.score)


@pytest.mark.parametrize("name", SHAPES)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data())
def test_a_part_replaced_by_anything_is_results_or_an_error(name, data):
    schema, shape = SHAPES[name]
    path = data.draw(st.sampled_from(list(paths(shape))))
    check(read(schema, altered(shape, path, data.draw(ANYTHING))))


@pytest.mark.parametrize("name", SHAPES)
def test_a_part_left_out_never_invents_results(name):
    schema, shape = SHAPES[name]
    complete = [item.title for item in read(schema, shape)]
    for path in paths(shape):
        items = read(schema, altered(shape, path, ...))
        check(items)
        titles = [item.title for item in items or ()]
        assert len(titles) <= len(complete) and set(titles) <= set(complete), path


@pytest.mark.parametrize("name", SHAPES)
def test_no_provider_takes_the_reply_of_another_for_nothing_found(name):
    """Catches a schema whose every field has a default. (Tavily and SearXNG answer in forms that hold the same results.)"""
    schema, _ = SHAPES[name]
    family = name.split("-")[0]
    for other, (_, shape) in SHAPES.items():
        if other.split("-")[0] != family:
            assert read(schema, shape) is None or {name, other} == {"tavily", "searxng"}, other
    for value in ({}, {"error": "over quota"}, {"message": "Unauthorized."}, {"detail": "x"}, {"results": None}):
        assert read(schema, value) is None
