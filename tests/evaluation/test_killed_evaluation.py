"""Tests the command evaluate in processes that are killed at random moments, on two hosts, and with large images."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dv2_jax.telemetry.trajectories import read_trajectories
from tests.evaluation.scripted_evaluation import COUNT, LOG, SLEEP, SUMS

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS, KILLS = 80, 10
WORDS = ["--config.model.init=random", f"--config.eval.benchmarks={SUMS}", "--config.eval.samples=2",
         "--config.eval.temperature=1", "--config.eval.scorers=official,deepeyesv2"]  # fmt: skip


def start(root: Path, log: Path) -> subprocess.Popen:
    environment = os.environ | {LOG: str(log), SLEEP: "0.05", COUNT: str(QUESTIONS)}
    command = [sys.executable, "-m", "tests.evaluation.scripted_evaluation", f"--config.run.root={root}", *WORDS]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def started(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def stored(root: Path) -> set[str]:
    path = root / "evaluate" / "trajectories" / "evaluate@sums.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return {json.loads(line)["id"] for line in lines if line.endswith(b"}") and line.startswith(b"{")}


@pytest.mark.long
def test_ten_kills_change_no_byte_of_the_table_and_no_answer_is_asked_for_twice(tmp_path):
    """Catches a lost or doubled answer, and a score of an answer that was not stored."""
    alone = start(tmp_path / "alone", tmp_path / "alone.log")
    assert alone.wait() == 0, alone.stderr.read()
    rng = random.Random(0)
    root, log = tmp_path / "killed", tmp_path / "killed.log"
    kills = 0
    while kills < KILLS:
        before, known = len(started(log)), stored(root)
        process = start(root, log)
        wanted = before + rng.randint(1, 2 * 2 * QUESTIONS // KILLS)
        while len(started(log)) < wanted and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        finished = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not known & set(started(log)[before:]), "a stored answer was asked for again"
        kills += 1
        if finished:
            break
    before, known = len(started(log)), stored(root)
    last = start(root, log)
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    assert not known & set(started(log)[before:])
    tables = [(tmp_path / name / "evaluate" / "results" / "table.csv").read_bytes() for name in ("alone", "killed")]
    assert tables[0] == tables[1] and tables[0].count(b"\n") > 10
    assert kills >= 5


HOSTS = """
import json
from dv2_jax import evaluate
from dv2_jax.parallel import distributed
from tests.evaluation.scripted_evaluation import ScriptedEngines, config_of
distributed.initialize()
distributed.initialize = lambda **given: None
evaluate._Engines = ScriptedEngines
results = evaluate.run(config_of({root!r}))
print(json.dumps([ScriptedEngines.started, results["benchmarks"]["sums"]["rows"]]))
"""


@pytest.mark.long
def test_hosts_answer_their_shards_and_share_the_results(tmp_path, two_processes):
    """Catches a host that answers all questions, records of a host that are not read, and results of one shard."""
    (first, rows), (second, same_rows) = two_processes(HOSTS.format(root=str(tmp_path)))
    assert rows == same_rows and rows["evaluate"][-1]["n"] == 12
    assert len(first) == len(second) == 6 and not set(first) & set(second)
    folder = tmp_path / "evaluate" / "trajectories"
    assert (folder / "host-1" / "evaluate@sums.jsonl").is_file()
    assert len(list(read_trajectories(folder, "evaluate@sums"))) == 12
    again = subprocess.run(
        [sys.executable, "-c", HOSTS.format(root=str(tmp_path))], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(again.stdout.splitlines()[-1]) == [[], rows]


MEMORY = """
import resource, sys
from dv2_jax import evaluate
from dv2_jax.evaluation.benchmarks.benchmark import Score
from dv2_jax.data.question import Question
from tests.evaluation.scripted_evaluation import ScriptedEngines, Sums, config_of, noise_png
IMAGE = noise_png(0, 590)
class Large:
    def __init__(self, count): self.count = count
    def __len__(self): return self.count
    def ids(self): return [f"sum-{{i:04d}}" for i in range(self.count)]
    def __getitem__(self, i):
        image = IMAGE + i.to_bytes(4)  # another file of 1 MB each
        return Question(f"sum-{{i:04d}}", "reasoning", "reason", f"What is {{i}} + {{i}}?", (image,), str(2 * i))
evaluate._Engines = ScriptedEngines
peaks = []
for count in (40, 40 + {rows}):
    Sums.load = lambda self, config, read: Large(count)
    evaluate.run(config_of({root!r}))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[0], peaks[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_large_images(tmp_path):
    """Catches a list of questions, prompts or trajectories: 300 rows of 1 MB would then need 300 MB more."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.format(root=str(tmp_path), rows=300)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    small, large = map(float, done.stdout.splitlines()[-1].split())
    assert large - small < 100, f"{small:.0f} MiB with 40 rows, {large:.0f} MiB with 340"
