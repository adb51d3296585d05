"""Tests that the code of `docs/how-to/own-benchmark.md` works as it is printed."""

import re
import sys
import types
from pathlib import Path

import pytest

from dv2_jax.config import RewardConfig, load
from dv2_jax.evaluation.benchmark_run import BenchmarkRun
from dv2_jax.evaluation.benchmarks.benchmark import BenchmarkAnswer
from dv2_jax.evaluation.benchmarks.benchmark_registry import run_benchmarks
from dv2_jax.rollout.question_sources import read_rows

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "own-benchmark.md").read_text()


def test_the_guide_works_as_printed(monkeypatch):
    """Catches: a guide whose methods, arguments or option no longer exist."""
    ((name, source),) = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", GUIDE, re.DOTALL)
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(source, module.__dict__)
    override = re.findall(r"--config\.eval\S+", GUIDE)[-1]
    config = load([f"--config={ROOT}/configs/evaluate.py", override], command="evaluate")
    (benchmark,) = run_benchmarks(config)
    run = BenchmarkRun.load(benchmark, config, read_rows)
    assert [run.row(index).asked.text for index in range(2)] == [
        f"Capital of {c}? Reply with the name of the city." for c in ("France", "Japan")
    ]
    answers = [BenchmarkAnswer("", final, RewardConfig()) for final in ("It is PARIS.", "Kyoto")]
    scores = [benchmark.score(question, answer) for question, answer in zip(run.questions, answers, strict=True)]
    rows = {row.name: row.value for row in benchmark.aggregate(scores)}
    assert rows == {"worst continent": 0.0, "Europe": 1.0, "Asia": 0.0, "overall": pytest.approx(0.5)}
