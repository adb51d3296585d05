"""An outage of the tools service: the probe at the start, and the end of a run without results."""

from dataclasses import replace

import pytest

from dv2_jax.config import Config, ConfigError, ToolsConfig
from dv2_jax.parallel.outage import ServiceOutage
from dv2_jax.rollout.tools_client import open_tools
from dv2_jax.rollout.tools_outage import OutageMonitor, ToolsOutage
from tools_service.client import Status, TextSearchRequest, ToolResult, start_local_service


class StubTools:
    """A client whose next answers have the given statuses, at a time that the test sets."""

    address = "tools:7000"

    def __init__(self):
        self.now, self.answers = 0.0, []

    def submit(self, requests):
        self.open = [request.request_id for request in requests]

    def poll(self, timeout_s=0.0):
        answers, self.answers = self.answers, []
        return [ToolResult(f"r{i}", "exec", status, message=f"{status.value} here") for i, status in enumerate(answers)]


def outcomes(events, outage_s=300.0):
    """Plays (time, statuses that arrive) and returns the error, or the number of results that came through."""
    tools = StubTools()
    monitor, count = OutageMonitor(tools, outage_s, clock=lambda: tools.now), 0
    for now, statuses in events:
        tools.now = now
        monitor.submit([TextSearchRequest("r", "q", 1)])
        tools.answers = list(statuses)
        try:
            count += len(monitor.poll())
        except ToolsOutage as error:
            return str(error)
    return count


OK, DOWN, LOST = Status.OK, Status.UNAVAILABLE, Status.SESSION_LOST


def test_outage_monitor__raises_when_every_request_failed_for_long_enough():
    """Catches: a run that goes on without a single result, and one that stops at the first failure."""
    assert outcomes([(0, [DOWN]), (299, [DOWN, LOST])]) == 3
    error = outcomes([(0, [DOWN]), (150, [LOST]), (300, [DOWN])])
    assert error == (
        "the tools service at tools:7000 has given no result for 300 s (tools.outage_s = 300);"
        " last error: unavailable here"
    )


@pytest.mark.parametrize("status", [s for s in Status if s not in (DOWN, LOST, Status.CANCELLED)])
def test_outage_monitor__any_executed_or_refused_request_is_a_result(status):
    """Catches: errors of the policy's code that count as an outage."""
    assert outcomes([(0, [DOWN]), (200, [DOWN, status]), (499, [DOWN]), (798, [DOWN])]) == 5


def test_outage_monitor__time_in_which_nothing_failed_ends_no_run():
    """Catches: a recovered service that is given up because the trainer sent nothing for long."""
    assert outcomes([(0, [OK]), (1000, [DOWN]), (1200, []), (9000, [OK])]) == 3


def test_open_tools__watches_for_an_outage_as_long_as_the_run_lasts(tmp_path):
    """Catches: a client without a monitor, and one whose outage begins again with every scheduler."""
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=["--no-sandbox"])
    config = replace(Config(), tools=ToolsConfig(address=service.address, outage_s=0.0, request_timeout_s=5.0))
    with open_tools(config, tmp_path) as tools:
        service.stop()
        tools.submit([TextSearchRequest("r", "iron", 1)])
        with pytest.raises(ToolsOutage, match=f"the tools service at {service.address} has given no result"):
            while not tools.poll(1.0):
                pass
    assert issubclass(ToolsOutage, ServiceOutage)  # which the recipe answers with a checkpoint


def test_open_tools__names_an_address_where_nobody_answers(tmp_path):
    """Catches: a run that starts, loads the policy and then drops every trajectory."""
    config = replace(Config(), tools=ToolsConfig(address="127.0.0.1:9"))
    with (
        pytest.raises(ConfigError, match="tools.address = '127.0.0.1:9': no answer .*check address"),
        open_tools(config, tmp_path),
    ):
        pass


def test_open_tools__names_a_rejected_token(tmp_path):
    (tmp_path / "token").write_text("correct-horse-battery-staple")
    (tmp_path / "other").write_text("another-horse-battery-staple")
    arguments = ["--no-sandbox", "--token-file", str(tmp_path / "token")]
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=arguments)
    try:
        tools = ToolsConfig(address=service.address, token_file=str(tmp_path / "other"))
        with (
            pytest.raises(ConfigError, match="UNAUTHENTICATED.*check tools.token_file"),
            open_tools(replace(Config(), tools=tools), tmp_path),
        ):
            pass
        # With a dead replica listed first, the one that answers is enough to start.
        both = replace(tools, address=f"127.0.0.1:9,{service.address}", token_file=str(tmp_path / "token"))
        with open_tools(replace(Config(), tools=both), tmp_path) as client:
            assert client.info()["tier"] == "no sandbox"
    finally:
        service.stop()
