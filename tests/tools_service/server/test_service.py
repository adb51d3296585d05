"""The service and its client: batches, idempotency, losses, refusals, authentication and shutdown."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from tests.tools_service.bench import Bench, alive, descendants, start_as_nobody, wait_until_gone
from tools_service.client import (
    ExecRequest,
    ImageSearchRequest,
    Status,
    TextSearchRequest,
    ToolsClient,
    messages,
    start_local_service,
)
from tools_service.proto import tools_pb2 as pb
from tools_service.proto import tools_pb2_grpc

LIGHT = ["--packages", "numpy,pillow", "--warm", "2"]  # starts in a second, without the plotting libraries
_TOKEN = "correct-horse-battery-staple"


def noise_png(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 60 + seed).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes")
    (folder / "corpus.jsonl").write_text(
        '{"title": "Iron", "text": "Iron melts at 1538 °C.", "date": "2020"}\n{"title": "Gold", "text": "Gold."}'
    )
    images_folder = folder / "images"
    images_folder.mkdir()
    for seed in range(4):
        (images_folder / f"noise_{seed}.png").write_bytes(noise_png(seed=seed * 30))
    return folder / "corpus.jsonl", images_folder


@pytest.fixture(scope="module")
def served(tmp_path_factory, indexes):
    """Starts a service with search, few sessions, quick expiry and a token."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "token").write_text(_TOKEN + "\n")
    arguments = ["--token-file", str(folder / "token"), "--max-sessions", "12", "--idle-s", "6"]
    arguments += ["--evict-after-s", "0", *LIGHT]
    service = start_local_service(
        text_index=indexes[0], image_index=indexes[1], log_path=folder / "log.txt", extra_args=arguments
    )
    bench = Bench(service, token=_TOKEN)
    yield bench
    bench.close()
    log = (folder / "log.txt").read_text()
    assert "Traceback" not in log and "never retrieved" not in log, log[-3000:]


def test_the_start_says_where_it_listens_how_it_confines_and_what_it_searches(served):
    banner = "\n".join(served.service.banner)
    assert "isolation: " in banner and "limits: memory 1024 MB (" in banner and "tantivy, 2 documents" in banner
    info = served.client.info()
    assert info["limits"]["processes"] == 48 and "numpy" in info["packages"] and info["max_sessions"] == 12


def test_results_of_a_batch_arrive_when_they_are_done_not_in_the_order_asked(served):
    slow, quick = served.new_session(), served.new_session()
    served.run(slow, "import time"), served.run(quick, "1")
    served.client.submit(
        [ExecRequest("o-slow", slow, "time.sleep(2)\n'slow'", 10), ExecRequest("o-quick", quick, "'quick'", 10)]
    )
    assert [r.request_id for r in served.results(2)] == ["o-quick", "o-slow"]
    served.client.close_sessions([slow, quick])


def test_cells_of_one_session_run_in_the_order_of_the_batch(served):
    name = served.new_session()
    served.client.submit(
        [ExecRequest(f"{name}-{i}", name, f"seen = [*globals().get('seen', []), {i}]\nseen", 20) for i in range(8)]
    )
    results = {r.request_id: r.stdout for r in served.results(8)}
    assert results[f"{name}-7"] == "[0, 1, 2, 3, 4, 5, 6, 7]\n"
    served.client.close_sessions([name])


def test_a_request_id_is_executed_once_however_often_it_is_sent(served):
    name = served.new_session()
    served.run(name, "n = 0")
    request = ExecRequest(f"{name}-again", name, "import time\ntime.sleep(0.5)\nn += 1\nn", 20)
    for _ in range(3):  # the second and third while the first is in flight
        served.client.submit([request])
    assert [r.stdout for r in served.results(3)] == ["1\n"] * 3
    served.client.submit([request])
    assert served.results(1)[0].stdout == "1\n" and served.run(name, "n").stdout == "1\n"
    served.client.close_sessions([name])


def test_an_image_crosses_the_network_once_and_again_when_the_service_has_forgotten_it(served):
    name, other = served.new_session(), served.new_session()
    data = noise_png(90, 70)
    assert served.run(name, "image_1.size", images=(data,)).stdout == "(90, 70)\n"
    (replica,) = served.client._client._replicas
    message = replica.exec_batch([ExecRequest("x", other, "1", 5, (data, data))], {"x": (other, False)}, set(), "png")
    assert len(message.images) == 0 and len(message.items[0].image_digests) == 2
    replica._sent_digests.add(messages.image_digest(fresh := noise_png(33, 22, 7)))  # as after a restart of the service
    assert served.run(other, "image_2.size", images=(data, fresh)).stdout == "(33, 22)\n"
    served.client.close_sessions([name, other])


def test_text_and_image_search_answer_in_one_batch(served, indexes):
    query = (indexes[1] / "noise_2.png").read_bytes()
    served.client.submit([TextSearchRequest("t", "melting point of iron (", 5), ImageSearchRequest("i", query, 2)])
    found = {r.request_id: r for r in served.results(2)}
    assert found["t"].kind == "text_search" and [i.title for i in found["t"].items] == ["Iron"]
    assert found["t"].items[0].date == "2020" and found["t"].items[0].thumbnail is None
    assert found["i"].kind == "image_search" and found["i"].items[0].title == "noise 2"
    assert Image.open(io.BytesIO(found["i"].items[0].thumbnail)).size == (64, 48)


def test_what_is_wrong_with_a_request_is_said_and_nothing_runs(served):
    bad = [
        ExecRequest("e1", "no spaces please", "1", 5),
        ExecRequest("e2", "long", "#" * 300_000, 5),
        ExecRequest("e3", "time", "1", 1e6),
        ExecRequest("e4", "time", "1", float("nan")),
        ExecRequest("bad\nid", "x", "1", 5),
        ExecRequest("e5", "many", "1", 5, tuple(noise_png(8, 8, i) for i in range(65))),
        TextSearchRequest("s1", "", 5),
        TextSearchRequest("s2", "x" * 100_000, 5),
        TextSearchRequest("s3", "iron", 0),
        ImageSearchRequest("s4", b"nothing", 5),
    ]
    served.client.submit(bad)
    results = served.results(len(bad))
    assert {r.status for r in results} == {Status.REFUSED} and all(r.message for r in results)
    assert served.client.pending() == 0


def test_an_idle_session_expires_and_its_loss_is_said_before_anything_runs(served):
    name = served.new_session()
    served.run(name, "x = 1")
    deadline = time.monotonic() + 40
    while served.client.info()["sessions"] and time.monotonic() < deadline:
        time.sleep(0.5)
    lost = served.run(name, "y = 2")
    assert lost.status is Status.SESSION_LOST and lost.message
    assert served.run(name, "'y' in globals()").stdout == "False\n"
    served.client.close_sessions([name])


def test_more_sessions_than_fit_evict_the_idlest_and_never_a_busy_one(served):
    names = [served.new_session() for _ in range(16)]
    busy = served.new_session()
    served.run(busy, "import time\nx = 5")
    served.client.submit([ExecRequest("busy", busy, "time.sleep(4)\nx", 20)])
    for name in names:
        assert served.run(name, "1").status is Status.OK
    assert served.client.info()["sessions"] <= 12
    assert served.results(1)[0].stdout == "5\n"
    assert served.run(names[0], "1").status is Status.SESSION_LOST
    served.client.close_sessions([*names, busy])


def test_interrupt_stops_a_running_cell_and_keeps_its_variables(served):
    name = served.new_session()
    served.run(name, "x = 3")
    served.client.submit([ExecRequest("to-interrupt", name, "import time\ntime.sleep(50)", 60)])
    deadline = time.monotonic() + 20
    while not served.client.interrupt(name) and time.monotonic() < deadline:
        time.sleep(0.1)
    result = served.results(1)[0]
    assert result.status is Status.ERROR and "KeyboardInterrupt" in result.stderr and result.wall_ms < 30_000
    assert served.run(name, "x").stdout == "3\n"
    assert served.client.interrupt("unknown") is False
    served.client.close_sessions([name])


@pytest.mark.parametrize(
    ("code", "survives"),
    [("time.sleep(100)", True), ("while True:\n    try: time.sleep(100)\n    except BaseException: pass", False)],
)
def test_a_cell_whose_caller_vanished_is_stopped_and_keeps_its_variables_if_it_can(served, code, survives):
    channel = grpc.insecure_channel(served.service.address, options=[("grpc.enable_http_proxy", 0)])
    stub = tools_pb2_grpc.ToolsStub(channel)
    bearer = (("authorization", f"Bearer {_TOKEN}"),)
    name = served.new_session()

    def request(text: str) -> pb.ExecRequest:
        return pb.ExecRequest(
            request_id=f"{name}-{zlib.crc32(text.encode())}", session_id=name, code=text, timeout_s=120
        )

    assert stub.Exec(request("import time\nx = 7"), metadata=bearer, timeout=60).status == pb.OK
    before = served.client.info()["counters"]["abandoned"]
    call = stub.Exec.future(request(code), metadata=bearer)
    deadline = time.monotonic() + 60
    while served.client.info()["running"] == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    call.cancel()
    while served.client.info()["running"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert served.client.info()["counters"]["abandoned"] == before + 1
    again = stub.Exec(request(code), metadata=bearer, timeout=60)
    assert again.status == pb.CANCELLED and again.message
    after = stub.Exec(request("globals().get('x')"), metadata=bearer, timeout=60)
    assert (after.stdout, after.restarted) == (("7\n", False) if survives else ("", True))
    stub.CloseSessions(pb.CloseSessionsRequest(session_ids=[name]), metadata=bearer, timeout=60)
    channel.close()


def test_without_the_token_nothing_is_answered_but_health(served):
    stranger = ToolsClient(served.service.address)
    stranger.submit([ExecRequest("s", "stranger", "1", 5)])
    deadline = time.monotonic() + 30
    while not (results := stranger.poll(1)) and time.monotonic() < deadline:
        pass
    assert results[0].status is Status.UNAVAILABLE and "UNAUTHENTICATED" in results[0].message
    with pytest.raises(ConnectionError):
        stranger.info()
    stranger.close()
    with grpc.insecure_channel(served.service.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        checks = health_pb2_grpc.HealthStub(channel)
        assert (
            checks.Check(health_pb2.HealthCheckRequest(service="tools.v1.Tools"), timeout=10).status
            == health_pb2.HealthCheckResponse.SERVING
        )
        with pytest.raises(grpc.RpcError) as error:
            tools_pb2_grpc.ToolsStub(channel).Exec(pb.ExecRequest(request_id="a", session_id="b", code="1"), timeout=10)
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_an_open_address_needs_a_token():
    run = subprocess.run(
        [sys.executable, "-m", "tools_service", "--host", "0.0.0.0"], capture_output=True, text=True, timeout=60
    )
    assert run.returncode != 0 and "--token-file" in run.stderr


def test_an_address_where_nobody_listens_answers_unavailable():
    client = ToolsClient("127.0.0.1:9")
    client.submit([ExecRequest("a", "s", "1", 1), TextSearchRequest("b", "x", 1)])
    results = []
    deadline = time.monotonic() + 40
    while len(results) < 2 and time.monotonic() < deadline:
        results += client.poll(1)
    assert (
        sorted((r.request_id, r.status) for r in results if r.message)
        == [("a", Status.UNAVAILABLE), ("b", Status.UNAVAILABLE)]
        or [r.status for r in results] == [Status.UNAVAILABLE] * 2
    )
    client.close()


@pytest.fixture
def fragile(tmp_path):
    """Starts a service for one test, which kills some of its processes."""
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=LIGHT)
    bench = Bench(service)
    yield bench
    bench.close()


def _processes(server: int) -> tuple[int, int]:
    """Returns the pids of manager and zygote below the server."""
    manager = next(p for p in descendants(server) if "sandbox.manager" in Path(f"/proc/{p}/cmdline").read_text())
    zygote = next(
        p for p in descendants(manager) if b"worker.zygote" in Path(f"/proc/{p}/cmdline").read_bytes() and _leader(p)
    )
    return manager, zygote


def _leader(pid: int) -> bool:
    """Returns True for the oldest of its siblings: sessions are forks of the zygote with its command line."""
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    siblings = [p for p in alive(descendants(_parent(pid))) if p != pid]
    return all(
        int(started) <= int(Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[19]) for p in siblings
    )


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_losing_the_zygote_costs_no_session_and_losing_the_manager_answers_everything_once(fragile):
    server = fragile.service.process.pid
    kept = fragile.new_session()
    fragile.run(kept, "x = 11")
    manager, zygote = _processes(server)
    os.kill(zygote, signal.SIGKILL)
    assert fragile.run(kept, "x").stdout == "11\n"
    for _ in range(4):  # more than the warm pool holds
        assert fragile.run(fragile.new_session(), "1").stdout == "1\n"
    names = [fragile.new_session() for _ in range(4)]
    for name in names:
        fragile.run(name, "import time\ny = 1")
    below = descendants(server)
    fragile.client.submit([ExecRequest(f"{name}-m", name, "time.sleep(1)\ny", 20) for name in names])
    time.sleep(0.3)
    os.kill(manager, signal.SIGKILL)
    results = fragile.results(4)
    assert sorted(r.request_id for r in results) == sorted(f"{n}-m" for n in names)
    assert {r.status for r in results} <= {Status.SESSION_LOST, Status.UNAVAILABLE, Status.OK}
    assert wait_until_gone(below) == []
    assert fragile.run(kept, "x").status in (Status.SESSION_LOST, Status.ERROR)
    assert fragile.run(fragile.new_session(), "2").stdout == "2\n"
    assert fragile.client.poll(0.3) == []


def test_nothing_is_left_when_the_server_is_killed(tmp_path):
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=LIGHT)
    bench = Bench(service)
    for _ in range(3):
        bench.run(bench.new_session(), "import os\nif os.fork() == 0:\n    import time\n    time.sleep(1000)")
    below = descendants(service.process.pid)
    folder = bench.client.info()["runtime_dir"]
    assert len(below) >= 8
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.wait()
    assert wait_until_gone(below) == []
    deadline = time.monotonic() + 10
    while os.path.exists(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(folder)
    bench.client.close()


def test_a_stop_drains_running_cells_and_leaves_no_process_group_or_folder(tmp_path):
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=LIGHT)
    bench = Bench(service)
    name = bench.new_session()
    bench.run(name, "import time")
    below = descendants(service.process.pid)
    manager = _processes(service.process.pid)[0]
    folder = bench.client.info()["runtime_dir"]
    bench.client.submit([ExecRequest("last", name, "time.sleep(1.5)\n'finished'", 20)])
    time.sleep(0.5)
    service.process.send_signal(signal.SIGTERM)
    assert bench.results(1)[0].stdout == "'finished'\n"
    assert service.process.wait(30) == 0
    assert wait_until_gone(below) == [] and not os.path.exists(folder)
    assert not [p for p in Path("/sys/fs/cgroup").rglob(f"tools-sandbox-{manager}")]
    bench.client.close()
    service.stop()


def test_a_service_ends_with_the_process_that_started_it(tmp_path):
    code = f"""
import sys, time
from tools_service.client import start_local_service
service = start_local_service(log_path={str(tmp_path / "log.txt")!r}, extra_args={LIGHT!r})
print(service.process.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    server = int(parent.stdout.readline())
    below = [server, *descendants(server)]
    assert len(below) >= 4
    parent.kill()
    parent.wait()
    assert wait_until_gone(below) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming an unprivileged user needs root")
def test_an_unprivileged_user_gets_namespaces_and_a_disk_quota_where_the_kernel_grants_them(tmp_path):
    service = start_as_nobody(tmp_path / "log.txt", "--tier", "userns", *LIGHT)
    bench = Bench(service)
    try:
        if bench.tier != "userns":
            pytest.skip("this kernel grants no user namespace to an unprivileged user")
        code = """
import os
print(os.getpid(), os.getuid(), sorted(os.listdir('/')), os.path.exists('/etc/passwd'))
try:
    for i in range(40): open(f'f{i}', 'wb').write(bytes(4_000_000))
except OSError as error: print(error.errno)
"""
        result = bench.run("quota", code)
        first, second = result.stdout.splitlines()
        assert re.match(r"1 6[2-4]\d{4} \['bin', 'dev'", first) and first.endswith("False") and second == "28", result
        assert bench.run("bomb", "import os\nwhile True: os.fork()", timeout_s=5).status is not Status.OK
        assert bench.run("quota", "i").stdout == f"{(64 << 20) // 4_000_000}\n"
    finally:
        bench.close()


def test_a_machine_without_confinement_is_refused_without_the_insecure_option():
    code = """
import json, socket, sys
from tools_service.sandbox.manager import isolation
from tools_service.sandbox.protocol.isolation_config import Limits, IsolationConfig
config = IsolationConfig('insecure', False, False, 0, 'none', 0, False, Limits(), (), '/missing', 100)
isolation._succeeds_in_child = lambda attempt: False
print(isolation.probe_isolation(config, 'root', True).tier)
try: isolation.probe_isolation(config, 'root', False)
except isolation.IsolationUnavailable as error: print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.startswith("insecure\nno confinement on this machine") and "--insecure" in run.stdout, run.stderr


def test_info_is_plain_json(served):
    assert json.loads(json.dumps(served.client.info()))["version"]
