"""Fixtures: a running service per isolation tier."""

from __future__ import annotations

import os

import pytest

from tests.tools_service.bench import Bench, start_as_nobody
from tools_service.client import start_local_service


@pytest.fixture(scope="module", params=["best", "landlock, as nobody"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Starts the service with the strongest tier of this machine, and with tier `landlock` as an unprivileged user."""
    log = tmp_path_factory.mktemp("tools") / "log.txt"
    if request.param == "best":
        service = start_local_service(log_path=log, extra_args=["--grace-s", "1"])
    elif os.geteuid() != 0:
        pytest.skip("becoming an unprivileged user needs root")
    else:
        service = start_as_nobody(log, "--tier", "landlock", "--max-sessions", "40")
    bench = Bench(service)
    yield bench
    bench.close()
    # pytest shows the log if a test of this tier failed
    print(log.read_text(errors="replace")[-4000:])


@pytest.fixture
def session(bench: Bench):
    name = bench.new_session()
    yield name
    bench.client.close_sessions([name])
