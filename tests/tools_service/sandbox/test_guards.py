"""Protection of the service and of other callers against hostile or careless callers."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
import urllib.request

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.tools_service.bench import Bench, descendants
from tools_service.client import ExecRequest, Status, TextSearchRequest, ToolsClient, messages, start_local_service
from tools_service.proto import tools_pb2 as pb
from tools_service.proto import tools_pb2_grpc
from tools_service.server.tracing import Tracing

LIGHT = ["--packages", "numpy,pillow", "--warm", "2"]
_ALICE, _BOB = "alice-has-a-long-token", "bob-has-another-one-here"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Guarded:
    """A service with two callers, few sessions and a metrics port."""

    def __init__(self, folder):
        self.folder, self.metrics_port = folder, _free_port()
        (folder / "tokens").write_text(f"{_ALICE}\n{_BOB}\n")
        (folder / "corpus.jsonl").write_text('{"title": "Iron", "text": "Iron melts at 1538 °C."}\n')
        arguments = ["--token-file", str(folder / "tokens"), "--max-sessions", "12", "--sessions-per-client", "6"]
        arguments += ["--evict-after-s", "3600", "--metrics-port", str(self.metrics_port), "--reflection", *LIGHT]
        arguments += ["--traces", str(folder / "spans.jsonl")]
        self.service = start_local_service(
            text_index=folder / "corpus.jsonl", log_path=folder / "log.txt", extra_args=arguments
        )
        self.bench = Bench(self.service, token=_ALICE)
        self.channel = grpc.insecure_channel(
            self.service.address, options=[("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1)]
        )
        self.stub = tools_pb2_grpc.ToolsStub(self.channel)

    def exec(self, token: str, session: str, code: str, timeout: float = 60.0, **fields) -> pb.Result:
        request = pb.ExecRequest(
            request_id=fields.pop("request_id", f"r-{time.monotonic_ns()}"), session_id=session, code=code, **fields
        )
        return self.stub.Exec(request, metadata=bearer(token), timeout=timeout)

    def close(self, token: str, *sessions: str) -> int:
        return self.stub.CloseSessions(
            pb.CloseSessionsRequest(session_ids=sessions), metadata=bearer(token), timeout=60
        ).closed

    def log(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "log.txt").read_text().splitlines()]


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    guarded = Guarded(tmp_path_factory.mktemp("guarded"))
    yield guarded
    guarded.bench.close()
    guarded.channel.close()
    assert all(line["event"] for line in guarded.log()), "every line of the log is an object"


def test_a_caller_neither_sees_nor_stops_nor_ends_the_session_of_another(guarded):
    assert guarded.exec(_ALICE, "mine", "x = 'secret of alice'", request_id="same").status == pb.OK
    lost = guarded.exec(_BOB, "mine", "x", expects_state=True)
    assert lost.status == pb.SESSION_LOST and "unknown" in lost.message
    other = guarded.exec(_BOB, "mine", "'x' in globals()", request_id="same")  # alice's request id, too
    assert other.stdout == "False\n"
    running = guarded.stub.Exec.future(
        pb.ExecRequest(request_id="long", session_id="mine", code="import time\ntime.sleep(3)\nx"),
        metadata=bearer(_ALICE), timeout=60,
    )  # fmt: skip
    time.sleep(0.5)
    interrupt = guarded.stub.Interrupt(pb.InterruptRequest(session_id="mine"), metadata=bearer(_BOB), timeout=60)
    assert interrupt.interrupted is False
    assert guarded.close(_BOB, "mine") == 1 and guarded.close(_BOB, "mine") == 0
    assert running.result().stdout == "'secret of alice'\n"
    assert guarded.close(_ALICE, "mine") == 1


def test_an_image_of_another_caller_cannot_be_had_by_its_digest(guarded):
    data = b"\x89PNG not really"
    guarded.exec(_ALICE, "images", "1", images=[data])
    asked = guarded.exec(_BOB, "images", "1", image_digests=[messages.image_digest(data)])
    assert asked.status == pb.MISSING_IMAGES and list(asked.missing_digests) == [messages.image_digest(data)]
    guarded.close(_ALICE, "images")


def test_a_flood_of_sessions_is_turned_away_and_costs_nobody_a_session(guarded):
    kept = [f"kept-{i}" for i in range(3)]
    for name in kept:
        assert guarded.exec(_BOB, name, "x = 1").status == pb.OK
    flood = [guarded.exec(_ALICE, f"flood-{i}", "1") for i in range(40)]
    assert [r.status for r in flood[:6]] == [pb.OK] * 6
    assert {r.status for r in flood[6:]} == {pb.UNAVAILABLE} and "sessions of this client" in flood[-1].message
    for name in kept:
        assert guarded.exec(_BOB, name, "x", expects_state=True).stdout == "1\n"
    guarded.close(_ALICE, *(f"flood-{i}" for i in range(40)))
    guarded.close(_BOB, *kept)


def test_a_deadline_wins_over_a_longer_time_out_and_the_cell_is_stopped(guarded):
    assert guarded.exec(_ALICE, "deadline", "import time").status == pb.OK
    try:
        result = guarded.exec(_ALICE, "deadline", "time.sleep(100)", timeout=4.0, timeout_s=60)
        assert result.status == pb.TIMEOUT and 1000 < result.wall_ms < 4000
    except grpc.RpcError as error:  # on a machine too loaded to answer before the deadline
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    limit = time.monotonic() + 30
    while guarded.bench.client.info()["running"] and time.monotonic() < limit:
        time.sleep(0.2)
    assert guarded.bench.client.info()["running"] == 0
    assert guarded.exec(_ALICE, "deadline", "'here'").stdout == "'here'\n"
    guarded.close(_ALICE, "deadline")


def test_one_poisoned_item_spoils_no_batch(guarded):
    codes = {"p-ok": "1", "p-exit": "import os; os._exit(0)", "p-after": "2", "p-slow": "import time; time.sleep(50)"}
    guarded.bench.client.submit([ExecRequest(n, n, c, 2.0 if n == "p-slow" else 20.0) for n, c in codes.items()])
    results = {r.request_id: r for r in guarded.bench.results(4)}
    statuses = {name: result.status for name, result in results.items()}
    assert statuses == {
        "p-ok": Status.OK, "p-exit": Status.CRASHED, "p-after": Status.OK, "p-slow": Status.TIMEOUT,
    }  # fmt: skip
    guarded.bench.client.close_sessions(list(codes))


def test_what_is_too_large_is_turned_away_before_it_is_looked_at(guarded):
    for compression in (None, grpc.Compression.Gzip):  # 200 MB of the same byte, 200 KB on the wire
        with pytest.raises(grpc.RpcError) as error:
            guarded.stub.Exec(
                pb.ExecRequest(request_id="huge", session_id="huge", code="#", images=[bytes(200 << 20)]),
                metadata=bearer(_ALICE), timeout=120, compression=compression,
            )  # fmt: skip
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    many = guarded.exec(_ALICE, "many", "1", image_digests=[bytes(32)] * 1000)
    assert many.status == pb.REFUSED and "1000 pictures" in many.message
    large = guarded.exec(_ALICE, "large", "#" * (300 << 10))
    assert large.status == pb.REFUSED and "limit" in large.message
    assert guarded.exec(_ALICE, "after", "1").stdout == "1\n"
    guarded.close(_ALICE, "after")


@pytest.mark.parametrize(
    "query",
    ['" OR * NEAR( AND NOT ^ title:iron~9 [a TO b] {', "iron" + "\x00\x1b[2J\u202e" * 20, "iron 'OR 1=1; --", "+-&&||!(){}[]^\"~*?:\\/ iron"],
)  # fmt: skip
def test_operators_and_control_characters_in_a_query_are_words_or_nothing(guarded, query):
    guarded.bench.client.submit([TextSearchRequest(f"query-{time.monotonic_ns()}", query, 3)])
    (result,) = guarded.bench.results(1)
    assert result.status is Status.OK and [item.title for item in result.items] in ([], ["Iron"]), result


@pytest.mark.parametrize("query", ["", "   \t\n", "\x00\x01", "***", "x" * (1 << 20)])
def test_a_query_without_words_or_without_end_is_refused(guarded, query):
    guarded.bench.client.submit([TextSearchRequest(f"query-{time.monotonic_ns()}", query, 3)])
    (result,) = guarded.bench.results(1)
    assert result.status is Status.REFUSED and result.message


def test_names_chosen_by_callers_reach_neither_log_nor_metrics(guarded):
    evil = 'x\n{"level": "info", "event": "forged"}'
    assert guarded.exec(_ALICE, evil, "1").status == pb.REFUSED
    assert guarded.exec(_ALICE, "plain-canary", "print('code-canary')", request_id="request-canary").status == pb.OK
    guarded.bench.client.submit([TextSearchRequest("search-canary", "query-canary", 3)])
    guarded.bench.results(1)
    guarded.stub.GetInfo(pb.GetInfoRequest(), metadata=(*bearer(_ALICE), ("x-long", "m" * 8000)), timeout=60)
    text = (guarded.folder / "log.txt").read_text()
    with urllib.request.urlopen(f"http://127.0.0.1:{guarded.metrics_port}/metrics", timeout=30) as reply:
        metrics = reply.read().decode()
    for canary in ("canary", "forged", _ALICE, _BOB):
        assert canary not in text and canary not in metrics
    assert 'tools_requests_total{kind="exec",status="OK"}' in metrics and "tools_sessions " in metrics
    assert 'tools_requests_total{kind="search",status="OK"}' in metrics
    guarded.close(_ALICE, "plain-canary")


def test_a_call_leaves_a_span_below_its_callers_and_no_contents(guarded):
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    metadata = (*bearer(_ALICE), ("traceparent", f"00-{trace}-{parent}-01"))
    request = pb.ExecRequest(request_id="span-canary", session_id="span-session", code="'code-canary'")
    assert guarded.stub.Exec(request, metadata=metadata, timeout=60).status == pb.OK
    path, spans = guarded.folder / "spans.jsonl", []
    deadline = time.monotonic() + 60
    while not spans and time.monotonic() < deadline:  # spans are exported in batches
        time.sleep(0.5)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        spans = [span for span in lines if span["context"]["trace_id"] == f"0x{trace}"]
    (span,) = spans
    assert span["parent_id"] == f"0x{parent}" and span["name"] == "tools/exec"
    assert span["attributes"] == {"tools.items": 1, "tools.abandoned": 0, "tools.OK": 1}
    assert "canary" not in path.read_text()
    guarded.close(_ALICE, "span-session")


def test_traces_without_their_package_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ValueError, match=r"dv2_jax\[traces\]"):
        Tracing.open("otlp")


def _frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def _literal(name: bytes, value: bytes) -> bytes:
    """Encodes a header as an HPACK literal without indexing; lengths below 127."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


_HEADERS = b"".join(
    _literal(*pair)
    for pair in (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/tools.v1.Tools/GetInfo"), (b":authority", b"x"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    )
)  # fmt: skip


@pytest.mark.parametrize("abuse", ["pings", "settings", "resets", "streams", "headers", "garbage", "nothing"])
def test_abuse_of_http2_leaves_the_service_well(guarded, abuse):
    host, port = guarded.service.address.rsplit(":", 1)
    opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0)
    attack = {
        "pings": _frame(6, 0, 0, bytes(8)) * 20_000,
        "settings": _frame(4, 0, 0) * 20_000,
        "resets": b"".join(_frame(1, 4, s, _HEADERS) + _frame(3, 0, s, bytes(4)) for s in range(1, 8001, 2)),
        "streams": b"".join(_frame(1, 4, s, _HEADERS) for s in range(1, 20_001, 2)),
        "headers": _frame(1, 0, 1, _HEADERS) + _frame(9, 0, 1, _literal(b"x-" + b"a" * 90, b"b" * 120) * 70) * 300,
        "garbage": os.urandom(1 << 20),
        "nothing": b"",
    }[abuse]
    before = set(descendants(guarded.service.process.pid))
    sockets = []
    for _ in range(3):
        attacker = socket.create_connection((host, int(port)), 10)
        attacker.settimeout(5)
        sockets.append(attacker)
        try:
            attacker.sendall(opening + attack)
        except OSError:
            pass  # the service closed the connection while it was still sending, as it should
    assert guarded.exec(_ALICE, "abused", "'well'").stdout == "'well'\n"
    for attacker in sockets:
        attacker.close()
    assert guarded.service.process.poll() is None
    guarded.close(_ALICE, "abused")
    assert len(set(descendants(guarded.service.process.pid)) - before) < 8


def test_reflection_lists_the_service_where_it_was_asked_for(guarded):
    stub = reflection_pb2_grpc.ServerReflectionStub(guarded.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    reply = next(iter(stub.ServerReflectionInfo(iter([request]), metadata=bearer(_ALICE), timeout=60)))
    assert "tools.v1.Tools" in {service.name for service in reply.list_services_response.service}


@pytest.mark.slow
def test_a_zygote_that_hangs_is_replaced_and_costs_no_session(tmp_path):
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=[*LIGHT, "--warm", "1"])
    bench = Bench(service)
    try:
        bench.run("kept", "x = 5")
        manager = next(p for p in descendants(service.process.pid) if _has(p, b"sandbox.manager"))
        zygote = min((p for p in descendants(manager) if _has(p, b"worker.zygote")), key=_started)
        os.kill(zygote, signal.SIGSTOP)
        assert bench.run("kept", "x").stdout == "5\n"
        bench.client.submit([ExecRequest(f"new-{i}", f"new-{i}", "2", 60.0) for i in range(3)])
        assert [r.stdout for r in bench.results(3, within_s=240)] == ["2\n"] * 3
        assert bench.run("kept", "x").stdout == "5\n"
    finally:
        bench.close()


def _has(pid: int, text: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return text in file.read()
    except OSError:
        return False


def _started(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def test_idle_sessions_make_room_when_memory_runs_short_and_busy_ones_do_not(tmp_path):
    arguments = ["--memory-floor-mb", "100000000", "--evict-after-s", "1", *LIGHT]
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=arguments)
    bench = Bench(service)
    try:
        bench.client.submit([ExecRequest("busy", "busy", "import time\ntime.sleep(8)\n'done'", 60.0)])
        bench.run("idle", "x = 1")
        deadline = time.monotonic() + 60
        while bench.client.info()["counters"]["evicted"] == 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        lost = bench.run("idle", "x")
        assert lost.status is Status.SESSION_LOST and "evicted" in lost.message
        with grpc.insecure_channel(service.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = tools_pb2_grpc.ToolsStub(channel)  # a caller that does not set expects_state
            name = bench.client.info()["replica"]
            anew = stub.Exec(pb.ExecRequest(request_id="anew", session_id=f"idle@{name}", code="1"), timeout=60)
        assert (anew.status, anew.restarted, anew.generation) == (pb.OK, True, 2) and "evicted" in anew.message
        assert bench.results(1)[0].stdout == "'done'\n"
    finally:
        bench.close()


def test_more_cells_than_the_queue_holds_are_turned_away(tmp_path):
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=["--queue", "4", "--cells", "1", *LIGHT])
    client = ToolsClient(service.address)
    try:
        channel = grpc.insecure_channel(service.address, options=[("grpc.enable_http_proxy", 0)])
        items = [
            pb.ExecRequest(request_id=f"i{i}", session_id=f"s{i}", code="import time\ntime.sleep(1)", timeout_s=20)
            for i in range(10)
        ]
        stream = tools_pb2_grpc.ToolsStub(channel).BatchExec(pb.BatchExecRequest(items=items), timeout=120)
        statuses = [result.status for result in stream]
        assert len(statuses) == 10 and statuses.count(pb.UNAVAILABLE) >= 5 and statuses.count(pb.OK) >= 4
        channel.close()
    finally:
        client.close()
        service.stop()
