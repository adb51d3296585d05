"""Tests benchmarks: how a configuration names them, what loading refuses, and how answers and tables are scored."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from dv2_jax.config import Config, ConfigError, EvalConfig, RewardConfig, TaskConfig, load
from dv2_jax.data.question import Question
from dv2_jax.evaluation.answer_store import answer_info
from dv2_jax.evaluation.answerers.answerer import Answer, AnswerRequest
from dv2_jax.evaluation.benchmark_run import BenchmarkRun
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS, register_benchmark, run_benchmarks
from dv2_jax.evaluation.scoring import AnswerScorer, ScoredAnswer
from dv2_jax.evaluation.statistics import wilson_interval
from dv2_jax.evaluation.summary import summarize
from dv2_jax.parallel.outage import ServiceOutage
from dv2_jax.rewards import JudgeUnavailable, compute_rewards
from dv2_jax.rollout.question_sources import read_rows
from tests.data.row_cases import rl_row, write_jsonl

DIGITS = "tests.extension.digits_benchmark:DigitsBenchmark"


def config_of(*names: str, **task) -> Config:
    return replace(Config(), eval=EvalConfig(benchmarks=names), task=TaskConfig(**task))


def test_without_a_benchmark_the_task_is_evaluated(tmp_path):
    """Catches a file in `task` that is silently replaced by the embedded tasks, and one read from its end."""
    rows = [rl_row(reward_model={"ground_truth": str(i), "style": "rule"}) for i in range(10)]
    source, held_out = write_jsonl(tmp_path / "a.jsonl", rows), write_jsonl(tmp_path / "b.jsonl", rows[5:])
    (embedded,) = run_benchmarks(config_of(eval_size=3))
    assert embedded.name == "embedded" and len(embedded.load(config_of(eval_size=3), read_rows)) == 3
    for task, name, answers in [
        ({"source": str(source), "eval_size": 3}, "a", ["0", "1", "2"]),
        ({"source": str(source), "eval_size": 0}, "a", [str(i) for i in range(10)]),
        ({"source": str(source), "eval_source": str(held_out), "eval_size": 2}, "b", ["5", "6"]),
        ({"eval_source": str(held_out), "eval_size": 2}, "b", ["5", "6"]),
    ]:
        (found,) = run_benchmarks(config := config_of(**task))
        assert found.name == name and [q.answer for q in found.load(config, read_rows)] == answers
        assert found.row_count(config) == len(answers)


def test_benchmarks_of_one_run_have_different_names(tmp_path):
    """Catches two files of one name, whose results would overwrite each other."""
    (tmp_path / "x").mkdir()
    paths = [str(write_jsonl(folder / "rows.jsonl", [rl_row()])) for folder in (tmp_path, tmp_path / "x")]
    config = load(
        [f"--config.eval.benchmarks=embedded,{paths[0]},{DIGITS},{paths[1]}"], default_config="configs/evaluate.py"
    )
    assert [benchmark.name for benchmark in run_benchmarks(config)] == ["embedded", "rows", "digits", "rows-2"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("embeded",),
            r"eval.benchmarks: 'embeded' is none of .*embedded.*did you mean 'embedded'.*package.module:ClassName",
        ),
        (("no/such.jsonl",), "eval.benchmarks: there is no file 'no/such.jsonl'"),
        (("no_such.module:Class",), "cannot import 'no_such.module:Class': No module named 'no_such'"),
        (("tests.extension.digits_benchmark:digit_share",), "is no subclass of dv2_jax.*Benchmark"),
        (("dv2_jax.evaluation.benchmarks.benchmark:Benchmark",), "does not implement load"),
        (("dv2_jax.evaluation.benchmarks.rows_file:RowsFile",), "cannot be used"),
        (("embedded", DIGITS, "embedded"), "'embedded' is named twice"),
    ],
)
def test_a_benchmark_that_cannot_be_used_is_refused_with_the_reason(names, message):
    with pytest.raises(ConfigError, match=message):
        run_benchmarks(config_of(*names))


class OneQuestion(Benchmark):
    """A benchmark whose parts the tests replace."""

    name = "one"
    questions = (Question("q", "plain", "reason", "?", (), "4"),)

    def load(self, config, read):
        return list(self.questions)


def test_what_a_benchmark_requires_is_checked_at_the_start(monkeypatch):
    """Catches a search benchmark that is answered without search, and a judged one without a judge."""
    for need, message in (("judge", "reward.judge_base_url"), ("search", "needs the tool 'search'")):
        monkeypatch.setattr(OneQuestion, "requires", (need,))
        config = config_of(f"{__name__}:OneQuestion")
        with pytest.raises(ConfigError, match=message):
            run_benchmarks(replace(config, agent=replace(config.agent, tools=("code",))))
        judged = replace(config, reward=RewardConfig(judge_base_url="http://judge/v1"))
        assert [benchmark.name for benchmark in run_benchmarks(judged)] == ["one"]


def test_a_registered_name_belongs_to_one_class(monkeypatch):
    monkeypatch.setattr(BENCHMARKS, "entries", dict(BENCHMARKS.entries))
    register_benchmark(OneQuestion)
    assert run_benchmarks(config_of("one"))[0].name == "one"
    other = type("OtherQuestion", (OneQuestion,), {})
    with pytest.raises(ValueError, match="'one' is registered already"):
        register_benchmark(other)
    with pytest.raises(ValueError, match="name = '../x'"):
        register_benchmark(type("Outside", (OneQuestion,), {"name": "../x"}))


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ((), "benchmark 'one' has no questions"),
        (OneQuestion.questions * 2, "benchmark 'one' has two questions with the id 'q'"),
        (("text",), "benchmark 'one': AttributeError"),
        (None, "benchmark 'one': TypeError"),
    ],
)
def test_questions_that_cannot_be_used_are_refused_before_anything_is_answered(monkeypatch, questions, message):
    monkeypatch.setattr(OneQuestion, "questions", questions)
    with pytest.raises(ConfigError, match=message):
        BenchmarkRun.load(OneQuestion(), Config(), read_rows)


def score_all(benchmark, trajectories, tokenizer):
    """Returns the stored scores of trajectories, in their order."""
    found = {}
    scorer = AnswerScorer(benchmark, Config(), tokenizer, lambda record: found.update({record.sample: record}))
    for number, trajectory in enumerate(trajectories):
        answer = Answer(AnswerRequest(trajectory.question, number), trajectory)
        info = answer_info(answer, benchmark.name, "random", trajectory.tools, tokenizer)
        text = trajectory.response_text(tokenizer)
        scorer.submit(ScoredAnswer(trajectory.question, info, text, trajectory), ["official"])
    scorer.finish()
    scorer.close()
    return [found[number] for number in range(len(trajectories))]


def test_the_default_score_is_the_verdict_of_the_reward(trajectories, tokenizer):
    """Catches an evaluation that measures something else than it did before benchmarks were classes."""
    rewarded = [dataclasses.replace(trajectory) for trajectory in trajectories]
    compute_rewards(rewarded, tokenizer, RewardConfig())
    records = score_all(OneQuestion(), trajectories, tokenizer)
    scores = [record.score for record in records]
    assert [(r.reward, r.reward_parts) for r in records] == [(t.reward, t.reward_parts) for t in rewarded]
    assert [score.value for score in scores] == [t.reward_parts["accuracy"] for t in rewarded]
    # As scores of different questions: several answers to one question have a wider interval.
    table = OneQuestion().aggregate([dataclasses.replace(s, question_id=str(i)) for i, s in enumerate(scores)])
    summary = summarize(rewarded).summary()
    assert [row.name for row in table] == [*(name for name in summary if name != "overall"), "overall"]
    for row in table:
        assert (row.value, list(row.interval), row.n) == tuple(
            summary[row.name][key] for key in ("accuracy", "accuracy_interval", "n")
        )


def test_correct_wrong_and_failed_are_distinct(trajectories, tokenizer):
    """Catches a failure of tools, judge or scorer that counts as a wrong answer."""

    class Mixed(OneQuestion):
        def score(self, question, answer):
            return {
                0: lambda: Score(1.0),
                1: lambda: Score(0.5),
                2: lambda: 1 // 0,
                3: lambda: unavailable(),
                4: lambda: True,
            }[order[answer.trajectory.id]]()

    def unavailable():
        raise JudgeUnavailable("HTTP 500")

    order = {trajectory.id: i for i, trajectory in enumerate(trajectories)}
    records = score_all(Mixed(), trajectories, tokenizer)
    scores = [record.score for record in records]
    assert [score.outcome for score in scores] == ["correct", "wrong", "failed", "failed", "failed"]
    assert [score.failure for score in scores[2:]] == [
        "score: ZeroDivisionError: integer division or modulo by zero",
        "the judge gave no verdict: HTTP 500",
        "score returned True, not a Score",
    ]
    assert [record.reward is None for record in records] == [False, False, True, True, True]
    assert [record.reward_parts.get("accuracy") for record in records] == [1.0, 0.0, None, None, None]
    overall = Mixed().aggregate(scores)[-1]
    assert (overall.value, overall.n, overall.failed) == (0.75, 2, 3)


def test_an_outage_of_the_judge_ends_the_run(trajectories, tokenizer):
    """Catches an outage that is stored as one failed answer after another."""

    class Outage(OneQuestion):
        def score(self, question, answer):
            raise ServiceOutage("the judge is away")

    with pytest.raises(ServiceOutage, match="away"):
        score_all(Outage(), trajectories, tokenizer)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_score_is_a_fraction_or_a_failure_with_its_reason(value):
    with pytest.raises(ValueError, match="is not between 0 and 1"):
        Score(value)
    with pytest.raises(ValueError, match="needs the reason"):
        Score(None)
    with pytest.raises(TypeError, match="not JSON serializable"):
        Score(1.0, details={"image": b""})


def test_rows_have_a_wilson_interval_of_the_scored_answers():
    """Catches failed answers among the n, and an interval without width where all scores are equal."""
    proportion = ResultRow.from_scores("a", [Score(1.0), Score(0.0), Score(1.0), Score(None, "lost")])
    assert (proportion.value, proportion.interval) == (pytest.approx(2 / 3), wilson_interval(2, 3))
    assert (proportion.n, proportion.failed) == (3, 1)
    equal = ResultRow.from_scores("b", [Score(0.5), Score(0.5)])
    assert (equal.value, equal.interval) == (0.5, wilson_interval(1, 2))


def test_the_interval_of_partial_credit_covers_the_mean():
    """Catches an interval that is too narrow for fractional scores: 95 % of the samples must cover their mean."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = ResultRow.from_scores("x", [Score(value) for value in rng.beta(0.4, 0.6, 25)]).interval
        covered += low <= 0.4 <= high
    assert covered >= 0.94 * 400


def test_a_row_without_a_scored_answer_has_no_value():
    nothing = ResultRow.from_scores("d", [Score(None, "lost")])
    assert (nothing.value, nothing.interval, nothing.n, nothing.failed) == (None, None, 0, 1)
    assert json.loads(json.dumps(nothing.to_dict()))["value"] is None
