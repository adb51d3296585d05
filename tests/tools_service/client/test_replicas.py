"""Several replicas behind one client, mutual TLS, and options that are refused."""

from __future__ import annotations

import ssl
import time

import pytest
import trustme

from tests.tools_service.bench import Bench
from tools_service.client import ExecRequest, Status, TextSearchRequest, Tls, ToolsClient, start_local_service
from tools_service.client.replicas import resolve_addresses
from tools_service.server import auth, options

LIGHT = ["--packages", "numpy,pillow", "--warm", "2"]


@pytest.fixture
def replicas(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"title": "Iron", "text": "Iron melts at 1538 °C."}\n')
    services = [
        start_local_service(
            text_index=tmp_path / "corpus.jsonl", log_path=tmp_path / f"log{i}.txt",
            extra_args=["--replica", f"r{i}", "--max-sessions", "20", *LIGHT],
        )
        for i in range(2)
    ]  # fmt: skip
    yield services
    for service in services:
        service.stop()


def results(client: ToolsClient, count: int) -> dict:
    found: list = []
    deadline = time.monotonic() + 120
    while len(found) < count:
        assert time.monotonic() < deadline, found
        found += client.poll(1.0)
    return {result.request_id: result for result in found}


def test_sessions_spread_and_those_of_a_lost_replica_are_lost_and_no_others(replicas):
    client = ToolsClient(",".join(service.address for service in replicas))
    names = [f"s{i}" for i in range(8)]
    client.submit([ExecRequest(f"open-{n}", n, f"x = '{n}'", 30.0) for n in names])
    assert {r.status for r in results(client, 8).values()} == {Status.OK}
    single = [ToolsClient(service.address) for service in replicas]
    assert [c.info()["sessions"] for c in single] == [4, 4]
    homes = {name: client._client._session_replica[name].address for name in names}

    # the id on the wire names its replica, so that another replica rejects it
    (foreign,) = {c.info()["replica"] for c in single} - {client._client._session_replica["s0"].name}
    single[0].submit([ExecRequest("foreign", "s0", "1", 10.0)])
    assert results(single[0], 1)["foreign"].status is Status.OK
    assert foreign.startswith("r")

    replicas[0].process.kill()
    replicas[0].process.wait()
    client.submit([ExecRequest(f"again-{n}", n, "x", 30.0) for n in names] + [TextSearchRequest("search", "iron", 3)])
    answers = results(client, 9)
    for name in names:
        answer = answers[f"again-{name}"]
        if homes[name] == replicas[0].address:
            assert answer.status is Status.SESSION_LOST and "gone" in answer.message
        else:
            assert (answer.status, answer.stdout) == (Status.OK, f"'{name}'\n")
    assert answers["search"].items[0].title == "Iron"
    client.submit([ExecRequest(f"anew-{n}", n, "'x' in globals()", 30.0) for n in names])
    assert {r.stdout for r in results(client, 8).values()} == {"True\n", "False\n"}
    assert client.poll(0.2) == []
    for one in (client, *single):
        one.close()


def test_a_replica_that_was_restarted_says_that_its_sessions_are_lost(tmp_path):
    port = "47611"
    arguments = ["--port", port, *LIGHT]
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=arguments)
    bench = Bench(service)
    bench.run("old", "x = 1")
    service.process.kill()
    service.process.wait()
    again = start_local_service(log_path=tmp_path / "log.txt", extra_args=arguments)
    try:
        lost = bench.run("old", "x")
        assert lost.status is Status.SESSION_LOST and "restarted" in lost.message
        assert bench.run("old", "'x' in globals()").stdout == "False\n"
        assert bench.run("new", "2").stdout == "2\n"
    finally:
        bench.close()
        again.stop()


def test_a_request_without_an_answer_ends_when_its_time_is_over(tmp_path):
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=LIGHT)
    client = ToolsClient(service.address, request_timeout_s=3.0)
    try:
        client.submit([ExecRequest("warm", "a", "import time", 30.0)])
        results(client, 1)
        started = time.monotonic()
        client.submit([ExecRequest("slow", "a", "time.sleep(100)", 120.0)])
        answer = results(client, 1)["slow"]
        # the RPC deadline also bounds the cell, so the service's own result may arrive first
        assert answer.status in (Status.UNAVAILABLE, Status.TIMEOUT) and time.monotonic() - started < 60
    finally:
        client.close()
        service.stop()


@pytest.mark.parametrize("address", ["no-port", "host:", ":80", "a:1,b"])
def test_an_address_that_is_none_is_refused_at_once(address):
    with pytest.raises(ValueError, match="host:port"):
        ToolsClient(address)


async def _resolved(address):
    return await resolve_addresses(address)


def test_a_name_stands_for_all_its_addresses(monkeypatch):
    import asyncio
    import socket

    async def lookup(self, host, port, **_):
        if host == "tools":
            return [(socket.AF_INET, None, 0, "", (f"10.0.0.{i}", port)) for i in (1, 2)]
        raise OSError("unknown")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    found = asyncio.run(_resolved("tools:7000,later:1"))
    assert found == [("10.0.0.1:7000", "tools"), ("10.0.0.2:7000", "tools"), ("later:1", "later")]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    ours, theirs = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(folder / "ca.pem")
    for name, issuer in (("127.0.0.1", ours), ("trainer", ours), ("stranger", theirs)):
        made = issuer.issue_cert(name, common_name=name)
        made.private_key_pem.write_to_path(folder / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    return folder


def test_with_mutual_tls_only_certified_callers_are_answered_and_each_has_its_own_sessions(certificates, tmp_path):
    arguments = ["--host", "0.0.0.0", "--tls-cert", str(certificates / "127.0.0.1.pem")]
    arguments += ["--tls-key", str(certificates / "127.0.0.1.key"), "--tls-client-ca", str(certificates / "ca.pem")]
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=[*arguments, *LIGHT])
    address = f"127.0.0.1:{service.address.rsplit(':', 1)[1]}"
    ca = certificates / "ca.pem"
    try:
        assert any("client certificate; TLS on" in line for line in service.banner)
        known = ToolsClient(address, tls=Tls(ca, certificates / "trainer.pem", certificates / "trainer.key"))
        known.submit([ExecRequest("a", "s", "x = 6\nx", 30.0)])
        assert results(known, 1)["a"].stdout == "6\n"
        known.close()
        for tls in (Tls(ca), Tls(ca, certificates / "stranger.pem", certificates / "stranger.key"), None):
            stranger = ToolsClient(address, tls=tls)
            stranger.submit([ExecRequest("a", "s", "x", 30.0)])
            assert results(stranger, 1)["a"].status is Status.UNAVAILABLE
            stranger.close()
        with pytest.raises(OSError):
            context = ssl.create_default_context(cafile=ca)
            import socket

            with context.wrap_socket(
                socket.create_connection(("127.0.0.1", int(address[10:])), 10), server_hostname="x"
            ):
                pass
    finally:
        service.stop()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--token-file or --tls-client-ca"),
        (["--host", "::"], "--token-file or --tls-client-ca"),
        (["--host", "0.0.0.0", "--tls-cert", "a", "--tls-key", "b"], "--token-file or --tls-client-ca"),
        (["--tls-cert", "a"], "--tls-key"),
        (["--tls-client-ca", "a"], "needs TLS"),
        (["--token-file", "/missing"], "/missing"),
        (["--replica", "a b"], "--replica"),
    ],
)
def test_options_that_would_leave_a_door_open_are_refused(arguments, said):
    with pytest.raises(options.InvalidOptions, match=said):
        options.parse(arguments)


def test_a_certificate_that_cannot_be_read_is_named():
    given = options.parse(["--tls-cert", "/missing.pem", "--tls-key", "/missing.key"])
    with pytest.raises(OSError, match="/missing"):
        auth.server_credentials(given)
    with pytest.raises(OSError, match="/missing"):
        ToolsClient("127.0.0.1:1", tls=Tls("/missing.pem"))


def test_a_weak_token_is_refused(tmp_path):
    for text in ("", "short\n", "a-token-that-is-long-enough\nshort\n"):
        (tmp_path / "tokens").write_text(text)
        with pytest.raises(options.InvalidOptions, match="at least 16"):
            options.parse(["--token-file", str(tmp_path / "tokens")])
