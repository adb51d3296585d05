"""Short runs of the soak test, the fuzzer and the benchmark, through their command lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.hostile_cells import CELLS

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> str:
    """Runs a benchmark command and returns its stdout; fails with its output if the command fails."""
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("tier", ["root", "landlock"])
def test_hostile_sessions_leave_nothing_behind_and_disturb_no_other(tier, tmp_path):
    """Catches: a leaked descriptor, process, mount or folder, a lost or swapped result, and state shared by sessions.

    All kinds of hostile cell run. Latencies are not checked, since the machine may be loaded.
    """
    report = tmp_path / "soak.json"
    run("benchmarks.tools_soak", "--cells", str(4 * len(CELLS)), "--sessions", "12", "--hostile", "0.25", "--warm-cells", "18",
        "--tier", tier, "--latency-ratio", "0", "--packages", "numpy,pillow", "--output", str(report))  # fmt: skip
    found = json.loads(report.read_text())
    assert found["wrong"] == [] and sum(found["hostile"].values()) == len(CELLS) and len(found["hostile"]) >= 3
    assert found["footprints"][-1]["processes"] >= 3 + 9


@pytest.mark.skipif(os.geteuid() != 0, reason="the weaker tier is the only one here")
def test_fuzzing_finds_no_crash_and_no_hang(tmp_path):
    """Runs every kind of attack seven times; `python -m benchmarks.tools_fuzz --minutes 10` is the long version."""
    output = run("benchmarks.tools_fuzz", "--attacks", "42", "--seed", "1")
    assert output.startswith("42 attacks (7 requests, 7 messages, 7 connections, 7 answers, 7 images, 7 parsers)")


def test_the_benchmark_measures_both_sides(tmp_path):
    """Catches: a side of the benchmark that no longer runs the cells. Timings are not checked."""
    report = tmp_path / "tools.json"
    run(
        "benchmarks.tools",
        "--rounds",
        "1",
        "--opens",
        "2",
        "--cells",
        "2",
        "--sessions",
        "2",
        "--live",
        "3",
        "--output",
        str(report),
    )
    found = {each["name"]: each for each in json.loads(report.read_text())["results"]}
    assert len(found) == 11 and all(each["service"] for each in found.values())
    both = [name for name, each in found.items() if each["kernels"]]
    assert len(both) == 9 and all(min(found[name]["service"] + found[name]["kernels"]) > 0 for name in both)
