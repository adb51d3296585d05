"""Runs hostile cells on the strongest tier of this machine and on the plain-container tier.

Those that exceed a limit run under every combination of user, namespaces and cgroups.
"""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from tests.tools_service.bench import ISOLATIONS, Bench, start_isolated
from tests.tools_service.sandbox import redteam_cases
from tools_service.client import Status
from tools_service.sandbox.protocol import enforcement
from tools_service.sandbox.protocol.isolation_config import IsolationConfig, Limits

CASES = redteam_cases.load()
LIMIT_CASES = [case for case in CASES if "limit" in case]
_EVERY_CASE = ("root, namespaces, cgroups", "nobody")  # isolations on which all cases run
_LIMITS_ONLY = tuple(isolation for isolation in ISOLATIONS if isolation not in _EVERY_CASE)
_LIMITS = ["--grace-s", "0.5", "--memory-mb", "512", "--max-sessions", "40"]
_AFTER = "import os\nprint('after')\nprint('next', os.getpid() == OWN)"


@pytest.fixture(scope="module")
def attacked(request, tmp_path_factory):
    """Starts a service whose environment holds secrets."""
    log = tmp_path_factory.mktemp("redteam") / "log.txt"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TOOLS_SECRET", "TOOLS_ENV_SECRET", "SERPER_API_KEY", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "CANARYSECRET-0123456789")
        service = start_isolated(request.param, log, *_LIMITS)
    bench = Bench(service)
    yield bench
    counters = bench.client.info()["counters"]
    bench.close()
    text = log.read_text(errors="replace")
    assert "Traceback" not in text and "CANARYSECRET" not in text, text[-3000:]
    assert "starting another" not in text and "zygote ended" not in text, "the supervisor did not survive"
    assert counters["opened"] > 0


def _title(case: dict) -> str:
    return f"{case['id']} {case['title']}"


# The isolation is a parameter of its own: parametrized together with the case, pytest starts a service for every test.
@pytest.mark.parametrize("case", CASES, ids=_title)
@pytest.mark.parametrize("attacked", _EVERY_CASE, indirect=True, scope="module")
def test_a_hostile_cell_is_contained(attacked, case):
    check_containment(attacked, case)


@pytest.mark.parametrize("case", LIMIT_CASES, ids=_title)
@pytest.mark.parametrize("attacked", _LIMITS_ONLY, indirect=True, scope="module")
def test_a_cell_that_exceeds_a_limit_is_contained(attacked, case):
    check_containment(attacked, case)


def check_containment(attacked: Bench, case: dict) -> None:
    """Runs a case in a session next to another one and checks both, then the session that was attacked again."""
    case = redteam_cases.under(case, attacked.enforced_by)
    attacker, other = attacked.new_session(), attacked.new_session()
    own = int(attacked.run(attacker, "import os\nos.getpid()").stdout)
    folder = attacked.run(attacker, "os.getcwd()").stdout.strip().strip("'")
    attacked.run(other, "y = 1")
    code = case["code"].replace("/sandbox", folder)
    result = attacked.run(attacker, code, timeout_s=case.get("timeout_s", redteam_cases.TIMEOUT_S))
    assert redteam_cases.differences(case, result) == []
    for step in case.get("then", ()):
        then = attacked.run(attacker, str(step["code"]), timeout_s=step.get("timeout_s", redteam_cases.TIMEOUT_S))
        assert redteam_cases.differences(step, then) == [], step
    follow = attacked.run(attacker, _AFTER.replace("OWN", str(own)))
    if case.get("spoils") and follow.status is not Status.OK:
        assert follow.status in (Status.CRASHED, Status.ERROR, Status.TIMEOUT), follow
        if follow.status is Status.CRASHED:  # the spoiled process is gone: a new one must be well
            follow = attacked.run(attacker, _AFTER.replace("OWN", str(own)))
            assert follow.status is Status.OK and follow.restarted, follow
    else:
        assert follow.status is Status.OK and follow.stdout.startswith("after\n"), follow
    if "keeps" in case:
        assert follow.restarted is not case["keeps"], (result.status, result.message, follow.message)
    if "next_prints" in case and not follow.restarted:
        assert case["next_prints"] in follow.stdout
    if "elsewhere" in case:
        assert redteam_cases.differences(case["elsewhere"], attacked.run(other, case["elsewhere"]["code"])) == []
    if case.get("differs_elsewhere"):
        assert attacked.run(other, code).stdout != result.stdout
    kept = attacked.run(other, "y")
    assert (kept.stdout, kept.restarted) == ("1\n", False), "another session was touched"
    attacked.client.close_sessions([attacker, other])
    assert attacked.client.poll(0) == []


@pytest.mark.parametrize("case", redteam_cases.against_the_service(), ids=_title)
def test_a_case_against_the_service_has_a_test_that_holds_it(case):
    if "documented" in case:
        policy = Path(__file__).resolve().parents[3] / "SECURITY.md"
        assert case["documented"] in policy.read_text()
        return
    file, _, name = case["held_by"].partition("::")
    tree = ast.parse((Path(__file__).parents[1] / file).read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert name in names if name else names


_NOT_ATTACKED = {
    "cpu_seconds": "takes an hour of CPU time",
    "cpu_cores": "is bandwidth; held by sandbox/test_limits.py where something enforces it",
    "all_cores": "likewise",
    "all_memory_mb": "held by sandbox/test_confinement.py::test_all_sessions_together_stay_within_their_memory",
    "all_processes": "held by sandbox/test_limits.py",
}


def test_every_limit_outside_the_server_has_a_hostile_cell():
    """Catches: a limit that nobody has tried to exceed."""
    config = IsolationConfig("landlock", False, False, 0, "none", 0, True, Limits(), (), "", 0)
    beyond_server = {name for name, by in enforcement.limit_enforcers(config).items() if by != enforcement.SERVER}
    assert {case["limit"] for case in LIMIT_CASES} == beyond_server - _NOT_ATTACKED.keys()
    assert {field.name for field in dataclasses.fields(Limits)} == enforcement.limit_enforcers(config).keys()
