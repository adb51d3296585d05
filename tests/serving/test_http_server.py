"""Names, tokens and addresses of the server, and its end after signals, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from dv2_jax.config import ConfigError, ServeConfig
from dv2_jax.serving.http_server import check_name, is_loopback, read_token

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, socket, sys
from pathlib import Path
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from dv2_jax.config import ServeConfig
from dv2_jax.serving.http_server import serve_until_signal

class Service:  # counts answers, and can end them
    is_draining, in_progress, aborted = False, 0, False
    def abort_all(self):
        self.aborted = True

service, gate = Service(), Path(sys.argv[1])

async def slow(request):
    service.in_progress += 1
    print("asked", flush=True)
    while not gate.exists() and not service.aborted:
        await asyncio.sleep(0.01)
    service.in_progress -= 1
    return PlainTextResponse("done", 503 if service.aborted else 200)

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
app = Starlette(routes=[Route("/slow", slow)])
sys.exit(0 if serve_until_signal(app, service, ServeConfig(drain_s=600), listener) else 1)
"""


@pytest.mark.parametrize("name", ["o1-tuned", "my-step-40", "Gemini", "a gap", "", "agent/7b", "modèle"])
def test_a_name_that_clients_misread_is_refused(name):
    """Catches a served name for which a client drops the temperature or renames max_tokens."""
    with pytest.raises(ConfigError, match="serve.name = "):
        check_name(name)


@pytest.mark.parametrize("name", ["dv2", "dv2-raw", "DeepEyesV2_7B.rl"])
def test_other_names_are_served(name):
    check_name(name)


def test_only_loopback_needs_no_token(tmp_path, monkeypatch):
    """Catches a server that runs code for everybody on the network."""
    monkeypatch.delenv("DV2_SERVE_TOKEN", raising=False)
    assert ServeConfig().host == "127.0.0.1" and read_token(ServeConfig()) == ""
    assert [is_loopback(host) for host in ("localhost", "::1", "0.0.0.0", "10.0.0.1", "example.org")] == [
        True,
        True,
        *[False] * 3,
    ]
    with pytest.raises(
        ConfigError, match="serve.host = '0.0.0.0' can be reached from other machines.*serve.token_file"
    ):
        read_token(ServeConfig(host="0.0.0.0"))
    path = tmp_path / "token"
    with pytest.raises(ConfigError, match="token: No such file|token': No such file"):
        read_token(ServeConfig(token_file=str(path)))
    path.write_text("\n")
    with pytest.raises(ConfigError, match="is empty: write the token into it"):
        read_token(ServeConfig(token_file=str(path)))
    path.write_text("secret\n")
    assert read_token(ServeConfig(host="0.0.0.0", token_file=str(path))) == "secret"
    monkeypatch.setenv("DV2_SERVE_TOKEN", "other")
    assert read_token(ServeConfig(host="0.0.0.0")) == "other"


@pytest.mark.parametrize(("signals", "status", "code"), [(1, 200, 0), (2, 503, 1)])
def test_the_first_sigterm_lets_running_requests_finish_and_the_second_ends_them(tmp_path, signals, status, code):
    """Catches an answer that is cut off by a restart, and a server that cannot be stopped."""
    gate, responses = tmp_path / "gate", []
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(gate)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/slow"
        asking = threading.Thread(target=lambda: responses.append(httpx.get(url, timeout=300)))
        asking.start()
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline().startswith("finishing 1 answers, for up to 600 s")
        assert process.poll() is None and not responses
        if signals == 2:
            process.send_signal(signal.SIGTERM)
        else:
            gate.touch()
        asking.join()
        assert process.wait() == code and responses[0].status_code == status
    finally:
        process.kill()
        process.communicate()
