"""The questions on which compared runs differ: outcomes of every run, and the answers to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dv2_jax.evaluation.comparison.paired_runs import QuestionScore, question_scores
from dv2_jax.evaluation.comparison.stored_run import BenchmarkAnswers, ComparedRun

RIGHT, WRONG, UNSCORED = "right", "wrong", "unscored"


@dataclass(frozen=True)
class DiscordantQuestion:
    """A question that some runs answer and others do not; `outcomes[i]` is that of run i, `samples[i]` the one shown."""

    benchmark: str
    question_id: str
    outcomes: tuple[str, ...]
    samples: tuple[int, ...]


def discordant_questions(runs: Sequence[ComparedRun]) -> list[DiscordantQuestion]:
    """Returns the questions of common benchmarks that one run has right and another has wrong, in the order of records."""
    found = []
    for name, part in runs[0].benchmarks.items():
        parts = [run.benchmarks.get(name) for run in runs]
        scores = [{} if other is None else question_scores(other) for other in parts]
        questions = dict.fromkeys(part.questions) | dict.fromkeys(
            q for other in parts[1:] if other for q in other.questions
        )
        for question in questions:
            outcomes = tuple(_outcome(own, question) for own in scores)
            if RIGHT in outcomes and WRONG in outcomes:
                shown = tuple(_sample(other, question, outcome) for other, outcome in zip(parts, outcomes, strict=True))
                found.append(DiscordantQuestion(name, question, outcomes, shown))
    return found


def shown_questions(questions: Sequence[DiscordantQuestion], per_benchmark: int) -> list[DiscordantQuestion]:
    """Returns at most `per_benchmark` questions of each benchmark, taking turns among the patterns of outcomes."""
    patterns: dict[str, dict[tuple[str, ...], list[DiscordantQuestion]]] = {}
    for question in questions:
        patterns.setdefault(question.benchmark, {}).setdefault(question.outcomes, []).append(question)
    shown = []
    for groups in patterns.values():
        ranked = [(rank, question) for members in groups.values() for rank, question in enumerate(members)]
        ranked.sort(key=lambda pair: pair[0])  # stable: the first of each pattern, then the second of each
        shown += [question for _, question in ranked[:per_benchmark]]
    return shown


def _outcome(scores: Mapping[str, QuestionScore], question: str) -> str:
    return UNSCORED if question not in scores else RIGHT if scores[question].is_right else WRONG


def _sample(part: BenchmarkAnswers | None, question: str, outcome: str) -> int:
    """Returns the first sample with the outcome of the question, or else the first one."""
    if part is None:
        return 0
    for sample in range(part.samples):
        record = part.scores.get((question, sample))
        if record is not None and record.score.value is not None and (record.score.value == 1) == (outcome == RIGHT):
            return sample
    return 0
