"""Evaluation from the command line to its files, with the real engine and the real tools service."""

import json
import math

import pytest

from dv2_jax import evaluate
from dv2_jax.config import load
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.telemetry.trajectories import read_trajectories

SMALL = [
    "--config.model.init=random",
    "--config.task.eval_size=10",
    "--config.task.train_size=50",
    "--config.agent.max_turns=2",
    "--config.agent.max_turn_tokens=12",
    "--config.agent.max_total_tokens=512",
    "--config.engine.slots=4",
    "--config.engine.page_size=512",  # one page per sequence: few widths, few programs to compile
    "--config.engine.pages=12",
    "--config.engine.prefill_rows=4",
    "--config.eval.baselines=guessing,no_tools",
    "--config.eval.compare=package:base",
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    config = load([*SMALL, f"--config.run.root={root}"], command="evaluate", default_config="configs/evaluate.py")
    evaluate.run(config)
    return root / config.run.name


def test_results_trajectories_and_report_agree(run_dir):
    results = json.loads((run_dir / "results.json").read_text())
    assert [(s["name"], s["title"]) for s in results["stages"]] == [
        ("base", "base"),
        ("evaluate", "random"),
        ("no_tools", "no tools"),
    ]
    for stage in ("base", "evaluate", "no_tools"):
        records = list(read_trajectories(run_dir / "trajectories", stage))
        assert results[stage]["overall"]["n"] == len(records) == 10
        rewards = [record["reward"] for record in records]
        assert results[stage]["overall"]["reward"] == pytest.approx(sum(rewards) / len(rewards))
        assert {record["question"]["id"] for record in records} == {f"eval-0-{i:05d}" for i in range(10)}
    assert results["evaluate"]["overall"]["dropped"] == 0
    assert set(results["evaluate"]) == {"overall", "perception", "reasoning", "search", "integration", "plain"}
    assert results["recompilations"] == 0
    assert (run_dir / "report" / "index.html").stat().st_size > 10_000


def test_evaluation_is_greedy(run_dir):
    """Catches sampling at the training temperature: a greedy token is the likeliest, so none has less than 1/V."""
    vocab = Tokenizer.from_package().vocab_size
    for record in read_trajectories(run_dir / "trajectories", "evaluate"):
        assert min(record["logprobs"]) > -math.log(vocab)


def test_guessing_is_reported_and_is_not_skill(run_dir):
    guessing = json.loads((run_dir / "results.json").read_text())["guessing"]
    assert set(guessing) == {"overall", "perception", "reasoning", "search", "integration", "plain"}
    assert 0 <= guessing["overall"] < 0.5
