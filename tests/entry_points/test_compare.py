"""Evaluation with human labels, and the comparison of its policies, from the commands to their files."""

import json
import re

import pytest

from dv2_jax import compare, evaluate
from dv2_jax.config import ConfigError, load
from tests.entry_points.test_evaluate import SMALL

LABELS = [
    {"benchmark": "embedded", "question_id": "eval-0-00000", "correct": False},
    {"benchmark": "embedded", "question_id": "eval-0-00001", "correct": False, "stage": "base"},
    {"benchmark": "embedded", "question_id": "nobody", "correct": True},
    {"benchmark": "vstar", "question_id": "1", "correct": True},
]


def arguments(root, labels):
    small = [word for word in SMALL if "baselines" not in word]
    return [*small, f"--config.run.root={root}", f"--config.eval.human_labels={labels}"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    (root / "labels.jsonl").write_text("".join(json.dumps(label) + "\n" for label in LABELS))
    words = arguments(root, root / "labels.jsonl")
    config = load(words, command="evaluate", default_config="configs/evaluate.py")
    evaluate.run(config)
    return root / config.run.name


def test_results_have_the_agreement_with_humans(run_dir):
    entry = json.loads((run_dir / "results.json").read_text())["benchmarks"]["embedded"]
    assert entry["human_labels"]["evaluate"]["unknown"] == ["nobody"]
    assert {stage: found["labels"] for stage, found in entry["human_labels"].items()} == {"evaluate": 1, "base": 1}
    page = (run_dir / "report" / "index.html").read_text()
    assert "human labels of unknown questions: nobody" in page
    assert re.search(r"paired differences below \d+\.\d points are not visible", page)


def test_two_policies_of_the_run_are_compared(run_dir, capsys):
    """Catches records of the real engine that the comparison cannot read or show."""
    page = run_dir / "compare.html"
    compare.main(
        [f"{run_dir}@base", f"{run_dir}@evaluate", f"--output={page}", f"--output={page.with_suffix('.json')}"]
    )
    out = capsys.readouterr().out
    (row,) = json.loads(page.with_suffix(".json").read_text())["comparisons"]
    counts = row["counts"]
    assert sum(counts.values()) == 10
    assert (row["warnings"], row["only_answered_a"], row["unscored_b"]) == ([], 0, 0)
    assert row["effort_a"]["answers"] == 10 and row["effort_a"]["completion_tokens"] > 0
    assert "10 questions" in out
    assert page.read_text().count('<details class="card"') == counts["only_a"] + counts["only_b"]


def test_a_bad_label_ends_the_command_before_anything_starts(tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"benchmark": "embedded", "question_id": "x", "correct": "yes"}\n')
    words = arguments(tmp_path, tmp_path / "labels.jsonl")
    config = load(words, command="evaluate", default_config="configs/evaluate.py")
    with pytest.raises(ConfigError, match="labels.jsonl: line 1: correct = 'yes': use true or false"):
        evaluate.run(config)
    assert not (tmp_path / config.run.name).exists()
