"""Tests connecting to a tools service, starting a local one and stopping it."""

import dataclasses
import os
from pathlib import Path

import pytest

from dv2_jax.config import Config, ConfigError, ToolsConfig
from dv2_jax.rollout.tools_client import embedded_index, open_tools
from tools_service.client import TextSearchRequest


def _search(tools, query: str) -> list[str]:
    tools.submit([TextSearchRequest("q", query, 3)])
    while not (results := tools.poll(1.0)):
        pass
    return [f"{item.title} {item.snippet}" for item in results[0].items]


def test_our_own_service_knows_the_embedded_facts_and_ends_with_the_block(tmp_path):
    before = _children()  # of other tests in this process
    with open_tools(Config(), tmp_path) as tools:
        assert any("iron is 26" in text for text in _search(tools, "atomic number of iron"))
        # a second run on this machine may use the first one's service
        with open_tools(Config(tools=ToolsConfig(address=tools.address)), tmp_path) as same:
            assert _search(same, "atomic number of iron")
        assert _search(tools, "atomic number of gold")
        children = set(_children()) - set(before)
        assert children
    assert not [child for child in children if os.path.exists(f"/proc/{child}")]
    assert (tmp_path / "tools_service.log").exists()


def _children() -> list[int]:
    """Returns the ids of child processes of all threads."""
    return [int(child) for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()]


def test_the_embedded_index_is_built_once(monkeypatch):
    first = embedded_index("text")
    written = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    monkeypatch.setattr("subprocess.run", None)  # a second build would fail
    assert embedded_index("text") == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == written


def test_a_token_file_that_is_not_there_is_named(tmp_path):
    tools = ToolsConfig(address="127.0.0.1:1", token_file=str(tmp_path / "token"))
    with (
        pytest.raises(ConfigError, match="tools.token_file"),
        open_tools(dataclasses.replace(Config(), tools=tools), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"address": "somewhere"}, "tools.address = 'somewhere'.*host:port"),
        ({"tls_ca": "/missing/ca.pem"}, "/missing/ca.pem"),
        ({"tls_ca": "ca", "tls_cert": "cert"}, "tools.tls_key"),
        ({"tls_cert": "cert", "tls_key": "key"}, "tools.tls_ca"),
    ],
)
def test_an_address_or_certificate_that_cannot_be_used_is_named(tmp_path, given, named):
    tools = ToolsConfig(**{"address": "127.0.0.1:1", **given})
    with pytest.raises(ConfigError, match=named), open_tools(dataclasses.replace(Config(), tools=tools), tmp_path):
        pass
