"""WeMath: problems of two and three steps, and each of their steps as a question of its own (arXiv 2407.01284)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.choice_benchmark import RULE, ChoiceBenchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import columns_of
from dv2_jax.evaluation.scorers.outcome_classes import OutcomeClass, classify, credit

PROBLEM = "multi"  # the step that is the problem itself


@register_benchmark
class WeMath(ChoiceBenchmark):
    """WeMath: the strict score of composite problems is `overall`; the loose one and the classes are rows of their own.

    A problem counts if all of its questions are scored, else it is failed. The score divides by the problems that count; VLMEvalKit
    divides by 525 always, so that on a part of the file missing problems count as mastered. Without a judge VLMEvalKit
    takes the first letter after the last `Answer`; here such an answer is failed.
    """

    name = "wemath"
    title = "WeMath"
    files = ("WeMath.tsv",)
    columns = ("question", "answer", "A", "B", "ID", "key")
    group_column = "key"
    data_source = "reason"
    published_rows = 1_740
    protocol = f"{RULE}; strict score of the composite problems that were scored (525 in the published file)"
    instruction = ""

    def cluster(self, question: Question) -> str:
        columns = columns_of(question)
        return f"{columns['key'].partition('_')[0]} {columns['ID']}"

    def details(self, question: Question) -> dict[str, Any]:
        kind, _, step = columns_of(question)["key"].partition("_")
        return {"kind": kind, "step": step}

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        steps = [score for score in scores if score.details["step"] != PROBLEM]
        rows = [ResultRow.from_scores("one step", steps)]
        for kind, name in (("2steps", "two steps"), ("3steps", "three steps")):
            problems = [score for score in scores if score.details == {"kind": kind, "step": PROBLEM}]
            rows.append(ResultRow.from_scores(name, problems))
        for title, is_loose in (("strict", False), ("loose", True)):
            outcomes = problem_outcomes(scores, is_loose)
            for outcome in OutcomeClass:
                rows.append(
                    _row(f"{outcome.value}, {title}", outcomes, lambda found, outcome=outcome: found is outcome)
                )
            rows.append(_row(OVERALL_ROW if title == "strict" else "score, loose", outcomes, credit))
        return sorted(rows, key=lambda row: row.name == OVERALL_ROW)  # last


def problem_outcomes(scores: Sequence[Score], is_loose: bool) -> dict[tuple[str, int], OutcomeClass | None]:
    """Returns (problem, sample) → class; None where a question of the problem has no score."""
    problems: dict[tuple[str, int], dict[str, Score]] = {}
    for score in scores:
        problems.setdefault((score.cluster, score.sample), {})[score.details["step"]] = score
    found: dict[tuple[str, int], OutcomeClass | None] = {}
    for key, asked in problems.items():
        count = int(next(iter(asked.values())).details["kind"].removesuffix("steps"))
        values = [asked[step].value if step in asked else None for step in (*map(str, range(1, count + 1)), PROBLEM)]
        known = None not in values
        found[key] = classify([value == 1 for value in values[:-1]], values[-1] == 1, is_loose) if known else None
    return found


def _row(
    name: str,
    outcomes: Mapping[tuple[str, int], OutcomeClass | None],
    value: Callable[[OutcomeClass], float],
) -> ResultRow:
    return ResultRow.from_scores(
        name,
        [
            Score(None, "a question of the problem has no score", question_id=problem, sample=sample)
            if outcome is None
            else Score(float(value(outcome)), question_id=problem, sample=sample)
            for (problem, sample), outcome in outcomes.items()
        ],
    )
