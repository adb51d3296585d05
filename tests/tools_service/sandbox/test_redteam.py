"""Runs hostile cells on the strongest tier of this machine and on the plain-container tier."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from tests.tools_service.bench import Bench, start_as_nobody
from tests.tools_service.sandbox import redteam_cases
from tools_service.client import Status, start_local_service

CASES = redteam_cases.load()
_LIMITS = ["--grace-s", "0.5", "--memory-mb", "512"]
_AFTER = "import os\nprint('after')\nprint('next', os.getpid() == OWN)"


@pytest.fixture(scope="module", params=["best", "landlock, as nobody"])
def attacked(request, tmp_path_factory):
    """Starts a service whose environment holds secrets."""
    log = tmp_path_factory.mktemp("redteam") / "log.txt"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TOOLS_SECRET", "TOOLS_ENV_SECRET", "SERPER_API_KEY", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "CANARYSECRET-0123456789")
        if request.param == "best":
            service = start_local_service(log_path=log, extra_args=_LIMITS)
        elif os.geteuid() != 0:
            pytest.skip("becoming an unprivileged user needs root")
        else:
            service = start_as_nobody(log, "--tier", "landlock", *_LIMITS)
    bench = Bench(service)
    yield bench
    counters = bench.client.info()["counters"]
    bench.close()
    text = log.read_text(errors="replace")
    assert "Traceback" not in text and "CANARYSECRET" not in text, text[-3000:]
    assert "starting another" not in text and "zygote ended" not in text, "the supervisor did not survive"
    assert counters["opened"] > 0


@pytest.mark.parametrize("case", CASES, ids=[f"{case['id']} {case['title']}" for case in CASES])
def test_a_hostile_cell_is_contained(attacked, case):
    if attacked.tier == "landlock":
        case = case | case.get("landlock", {})
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
    assert case.get("spoils") or (follow.status is Status.OK and follow.stdout.startswith("after\n")), follow
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


@pytest.mark.parametrize("case", redteam_cases.against_the_service(), ids=lambda case: f"{case['id']} {case['title']}")
def test_a_case_against_the_service_has_a_test_that_holds_it(case):
    if "documented" in case:
        readme = Path(__file__).resolve().parents[3] / "README.md"
        assert case["documented"] in readme.read_text()
        return
    file, _, name = case["held_by"].partition("::")
    tree = ast.parse((Path(__file__).parents[1] / file).read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert name in names if name else names
