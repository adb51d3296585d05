"""Pairs the answers of two runs to the same questions, and says what their difference shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dv2_jax.evaluation.benchmarks.benchmark import Score
from dv2_jax.evaluation.comparison.own_score import OwnScoreDifference, own_score_difference
from dv2_jax.evaluation.comparison.stored_run import BenchmarkAnswers, ComparedRun
from dv2_jax.evaluation.statistics import PairedCounts, PairedDifference, holm, mean, paired_difference

ALPHA = 0.05


@dataclass(frozen=True)
class QuestionScore:
    """The scored samples of one question: their mean, and whether more than half of them are correct."""

    value: float
    is_right: bool
    cluster: str


@dataclass(frozen=True)
class Effort:
    """Efforts of a policy on a benchmark, over all stored answers.

    `tokens_per_correct` counts sampled tokens; None without a correct answer. `cost` is None without prices.
    """

    answers: int
    prompt_tokens: float  # per answer
    completion_tokens: float  # per answer
    seconds: float  # per answer
    tool_calls: float  # per answer
    tokens_per_correct: float | None
    cost: float | None = None
    cost_per_correct: float | None = None


@dataclass(frozen=True)
class BenchmarkComparison:
    """Two runs on one benchmark; `difference` is None without a question that both have scored.

    Attributes:
        only_answered_a, only_answered_b: questions that the other run does not have.
        unscored_a, unscored_b: questions of both runs for which this one has no score: failed or undecided.
        judged_a, judged_b: compared questions whose score is by the judge; rules decided the others.
        judged_in_one: compared questions whose score is by the judge in one run, and by rules in the other.
        warnings: differences of protocol that make the numbers incomparable.
        adjusted_p: p-value adjusted by Holm's method for all comparisons of the command.
        table_a, table_b: overall values of the runs' own tables, over their own questions.
        error: the reason for which the benchmark's own score cannot be compared.
        own_score: the difference in the benchmark's own overall score, where that is no mean over questions.
    """

    benchmark: str
    a: str
    b: str
    counts: PairedCounts
    difference: PairedDifference | None
    only_answered_a: int
    only_answered_b: int
    unscored_a: int
    unscored_b: int
    effort_a: Effort
    effort_b: Effort
    judged_a: int = 0
    judged_b: int = 0
    judged_in_one: int = 0
    warnings: tuple[str, ...] = ()
    table_a: float | None = None
    table_b: float | None = None
    adjusted_p: float | None = None
    own_score: OwnScoreDifference | None = None
    error: str = ""
    discordant: tuple[str, ...] = field(default=(), repr=False)  # ids of questions that exactly one run answers

    @property
    def is_significant(self) -> bool:
        """True if the adjusted p-value is below 5 %."""
        return self.adjusted_p is not None and self.adjusted_p < ALPHA

    def verdict(self) -> str:
        """Returns one sentence that says whether the runs differ."""
        found = self.difference
        if found is None:
            return "no question is scored in both runs"
        better, points = (self.b, self.a)[found.difference < 0], abs(100 * found.difference)
        if found.difference == 0:
            return "no difference"
        if self.is_significant:
            return f"{better} is better by {points:.1f} points"
        return f"{better} is {points:.1f} points higher, which is within the noise"

    def visibility(self) -> str:
        """Returns the sentence about the smallest visible difference."""
        if self.difference is None:
            return ""
        smallest, n = self.difference.smallest_visible, self.difference.n
        if smallest is None:
            return f"no difference is visible at this n ({n:,} questions)"
        return f"differences below {100 * smallest:.1f} points are not visible at this n ({n:,} questions)"

    def to_dict(self) -> dict[str, Any]:
        """Converts to JSON types."""
        return asdict(self) | {"verdict": self.verdict(), "visibility": self.visibility()}


def question_scores(part: BenchmarkAnswers) -> dict[str, QuestionScore]:
    """Averages the scored samples of each question; questions without any are left out."""
    samples: dict[str, list[float]] = {}
    clusters: dict[str, str] = {}
    for (question, _), record in part.scores.items():
        clusters[question] = record.score.cluster or clusters.get(question, "")
        if record.score.value is not None:
            samples.setdefault(question, []).append(record.score.value)
    return {
        question: QuestionScore(
            mean(values), 2 * sum(value == 1 for value in values) > len(values), clusters[question] or question
        )
        for question, values in samples.items()
    }


def compare_benchmark(name: str, a: ComparedRun, b: ComparedRun) -> BenchmarkComparison:
    """Compares two runs on the questions that both have answered."""
    part_a, part_b = a.benchmarks[name], b.benchmarks[name]
    asked_b, asked_a = set(part_b.questions), set(part_a.questions)
    shared = [question for question in part_a.questions if question in asked_b]
    scores_a, scores_b = question_scores(part_a), question_scores(part_b)
    paired = [question for question in shared if question in scores_a and question in scores_b]
    outcomes = [(scores_a[question].is_right, scores_b[question].is_right) for question in paired]
    counts = PairedCounts(
        both=outcomes.count((True, True)),
        only_a=outcomes.count((True, False)),
        only_b=outcomes.count((False, True)),
        neither=outcomes.count((False, False)),
    )
    difference = None
    if paired:
        difference = paired_difference(
            [scores_a[question].value for question in paired],
            [scores_b[question].value for question in paired],
            [scores_a[question].cluster for question in paired],
        )
    judged_a, judged_b = ({question for question, _ in part.judged} & set(paired) for part in (part_a, part_b))
    own_score, error = None, ""
    try:
        own_score = own_score_difference(name, _scores(part_a, paired), _scores(part_b, paired)) if paired else None
    except Exception as raised:  # code from outside, on scores that an earlier version of it has stored
        error = f"the benchmark's own score cannot be compared: {type(raised).__name__}: {raised}"
    return BenchmarkComparison(
        benchmark=name,
        a=a.title,
        b=b.title,
        counts=counts,
        difference=difference,
        only_answered_a=len(asked_a) - len(shared),
        only_answered_b=len(asked_b) - len(shared),
        unscored_a=sum(question not in scores_a for question in shared),
        unscored_b=sum(question not in scores_b for question in shared),
        effort_a=effort(a, name),
        effort_b=effort(b, name),
        judged_a=len(judged_a),
        judged_b=len(judged_b),
        judged_in_one=len(judged_a ^ judged_b),
        warnings=tuple(protocol_differences(name, a, b)),
        table_a=_table_value(a, name),
        table_b=_table_value(b, name),
        own_score=own_score,
        error=error,
        discordant=tuple(q for q in paired if scores_a[q].is_right != scores_b[q].is_right),
    )


def compare_runs(runs: Sequence[ComparedRun]) -> list[BenchmarkComparison]:
    """Compares every run with the first one, on each benchmark that both have; p-values are adjusted for all of these."""
    first, *others = runs
    found = [
        compare_benchmark(name, first, other)
        for other in others
        for name in first.benchmarks
        if name in other.benchmarks
    ]
    tested = [index for index, comparison in enumerate(found) if comparison.difference is not None]
    adjusted = holm([difference.p_value for i in tested if (difference := found[i].difference) is not None])
    for index, p_value in zip(tested, adjusted, strict=True):
        found[index] = replace(found[index], adjusted_p=p_value)
    return found


def protocol_differences(name: str, a: ComparedRun, b: ComparedRun) -> list[str]:
    """Returns the differences of protocol between two runs on a benchmark, one sentence each."""
    part_a, part_b = a.benchmarks[name], b.benchmarks[name]
    pairs = [
        ("scorer and judge", part_a.scorer, part_b.scorer),
        ("tools", ", ".join(sorted(part_a.tools)) or "none", ", ".join(sorted(part_b.tools)) or "none"),
        ("samples per question", part_a.samples, part_b.samples),
        ("sampling temperature", *(_setting(run, "eval", "temperature") for run in (a, b))),
        ("rows", len(part_a.questions), len(part_b.questions)),
        ("judge", *(_setting(run, "reward", "judge_model") for run in (a, b))),
        *(
            (f"reward.{key}", *(_setting(run, "reward", key) for run in (a, b)))
            for key in ("verdicts", "max_answer_chars")
        ),
        ("source", *(run.results.get("benchmarks", {}).get(name, {}).get("source") for run in (a, b))),
    ]
    if not part_a.infos or not part_b.infos:
        pairs = [pair for pair in pairs if pair[0] not in ("tools",)]  # not stored
    found = [f"{what}: {x} and {y}" for what, x, y in pairs if x != y and None not in (x, y)]
    for run, part in ((a, part_a), (b, part_b)):
        if part.stale:
            found.append(
                f"{part.stale:,} scores of {run.title} are of earlier answers or settings, and left out; the same command of"
                " evaluate scores these answers again"
            )
    both = [key for key in part_a.infos if key in part_b.infos]
    other = sum(part_a.infos[key].prompt_digest != part_b.infos[key].prompt_digest for key in both)
    if other:
        found.append(f"prompt, tools or sampling parameters differ for {other:,} of {len(both):,} answers")
    return found


def _scores(part: BenchmarkAnswers, questions: Sequence[str]) -> list[Score]:
    """Returns the scores of some questions."""
    wanted = set(questions)
    return [record.score for (question, _), record in part.scores.items() if question in wanted]


def _table_value(run: ComparedRun, benchmark: str) -> float | None:
    row = run.table_row(benchmark)
    return None if row is None else row["value"]


def _setting(run: ComparedRun, section: str, field_name: str) -> Any:
    return run.config.get(section, {}).get(field_name)


def effort(run: ComparedRun, benchmark: str) -> Effort:
    """Averages tokens, seconds and calls over the stored answers; costs are those of the run's own results."""
    part = run.benchmarks[benchmark]
    priced = run.results.get("benchmarks", {}).get(benchmark, {}).get("usage", {}).get(run.stage, {})
    infos, count = list(part.infos.values()), max(1, len(part.infos))
    correct = sum(record.score.outcome == "correct" for record in part.scores.values())
    sampled = sum(info.completion_tokens for info in infos)
    return Effort(
        answers=len(infos),
        prompt_tokens=sum(info.prompt_tokens for info in infos) / count,
        completion_tokens=sampled / count,
        seconds=sum(info.seconds for info in infos) / count,
        tool_calls=sum(sum(info.tool_counts.values()) for info in infos) / count,
        tokens_per_correct=sampled / correct if correct and infos else None,
        cost=priced.get("cost"),
        cost_per_correct=priced.get("cost_per_correct"),
    )
