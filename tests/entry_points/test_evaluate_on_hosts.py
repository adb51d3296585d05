"""An evaluation on several benchmarks by two hosts (two processes with a device each), against one host."""

import json
import sys

import pytest

from dv2_jax.telemetry.trajectories import read_trajectories
from tests.entry_points.test_evaluate import SMALL
from tests.entry_points.test_own_benchmark import DIGITS
from tests.host_processes import run_on_hosts


@pytest.mark.long
def test_two_hosts_answer_every_benchmark_as_one_does(tmp_path):
    """Catches: hosts that answer different benchmarks at a time and wait for each other, questions that are answered
    twice or by no host, and a table that counts the questions of one host."""
    arguments = [word for word in SMALL if "eval." not in word and "eval_size" not in word]
    results = []
    for hosts in (1, 2):
        root = tmp_path / str(hosts)
        command = [
            *(sys.executable, "-m", "dv2_jax.evaluate", *arguments, f"--config.run.root={root}"),
            *("--config.task.eval_size=5", f"--config.eval.benchmarks={DIGITS},embedded"),
            *("--config.mesh.data=2", f"--config.mesh.cpu_devices={2 // hosts}"),
        ]
        run_on_hosts(command, hosts=hosts, devices_each=2 // hosts)
        results.append(json.loads((root / "evaluate" / "results.json").read_text())["benchmarks"])
        stored = {
            stage: sorted(
                record["question"]["id"] for record in read_trajectories(root / "evaluate/trajectories", stage)
            )
            for stage in ("evaluate", "evaluate@digits")
        }
        if hosts == 1:
            assert [len(ids) for ids in stored.values()] == [5, 4] == [len(set(ids)) for ids in stored.values()]
    one, two = results
    assert list(one) == list(two) == ["digits", "embedded"]
    for name in one:
        assert two[name]["rows"] == one[name]["rows"], name
