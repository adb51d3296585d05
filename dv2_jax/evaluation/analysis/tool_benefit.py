"""Measures whether a policy calls tools where they help, from answers with and without tools to the same questions.

Definitions as in the paper on Beacon: a question is text-easy if at least 4 of 5 answers without tools are right, and
text-hard if at most 1 of 5 is; the rest does not count. MA_tool is the share of text-hard questions with a call, MA_text
the share of text-easy ones without, MA_mean their mean (50 % shows no discrimination). Tool-Gain is the share of questions
that are wrong without and right with tools, Tool-Harm the opposite, and the effect of tools their difference.

With k samples, a question counts by its shares: text-easy from 80 % right, text-hard up to 20 %; a gain is the probability
that a random answer without tools is wrong and a random one with tools right. With one sample each, these are the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dv2_jax.evaluation.analysis.answer_rows import AnalyzedRun, AnswerRow, has_tools
from dv2_jax.evaluation.analysis.figure_tables import FigureTable
from dv2_jax.evaluation.statistics import ClusterTotals, bootstrap_interval, bootstrap_means, clustered_interval, mean
from dv2_jax.evaluation.statistics.cluster_bootstrap import percentile_interval

EASY, HARD = 0.8, 0.2  # share of right answers without tools


@dataclass(frozen=True)
class PairedQuestion:
    """One question with and without tools: shares of right answers and of answers with a call."""

    question_id: str
    cluster: str
    right_without: float
    right_with: float
    call_rate: float

    @property
    def is_easy(self) -> bool:
        return self.right_without >= EASY

    @property
    def is_hard(self) -> bool:
        return self.right_without <= HARD

    @property
    def gain(self) -> float:
        return (1 - self.right_without) * self.right_with

    @property
    def harm(self) -> float:
        return self.right_without * (1 - self.right_with)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, of `n` questions; None without questions."""

    value: float | None
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class ToolBenefit:
    """The diagnostics of one benchmark; `gains` and `harms` are ids of questions that changed in every answer."""

    benchmark: str
    policy: str
    reference: str
    samples: tuple[int, int]  # with tools, without
    ma_tool: Estimate
    ma_text: Estimate
    ma_mean: Estimate
    gain: Estimate
    harm: Estimate
    delta: Estimate
    gains: tuple[str, ...]
    harms: tuple[str, ...]


def paired_questions(with_tools: Sequence[AnswerRow], without: Sequence[AnswerRow]) -> list[PairedQuestion]:
    """Returns the questions that both have scored, in the order of the answers with tools.

    An answer with partial credit is right only with full credit, as outcomes are.
    """
    left, right = _by_question(with_tools), _by_question(without)
    pairs = []
    for question_id, answers in left.items():
        others = right.get(question_id)
        if others:
            pairs.append(
                PairedQuestion(
                    question_id,
                    answers[0].cluster,
                    mean([float(row.value == 1) for row in others]),
                    mean([float(row.value == 1) for row in answers]),
                    mean([float(row.calls > 0) for row in answers]),
                )
            )
    return pairs


def _by_question(rows: Sequence[AnswerRow]) -> dict[str, list[AnswerRow]]:
    found: dict[str, list[AnswerRow]] = {}
    for row in rows:
        if row.is_scored:
            found.setdefault(row.question_id, []).append(row)
    return found


def tool_benefit(
    benchmark: str, policy: str, reference: str, with_tools: Sequence[AnswerRow], without: Sequence[AnswerRow]
) -> ToolBenefit | None:
    """Computes the diagnostics of a benchmark; None if no question has scored answers in both."""
    pairs = paired_questions(with_tools, without)
    if not pairs:
        return None
    hard, easy = [p for p in pairs if p.is_hard], [p for p in pairs if p.is_easy]
    samples = tuple(max(len(rows) for rows in _by_question(answers).values()) for answers in (with_tools, without))
    return ToolBenefit(
        benchmark,
        policy,
        reference,
        (samples[0], samples[1]),
        _share(hard, lambda pair: pair.call_rate),
        _share(easy, lambda pair: 1 - pair.call_rate),
        _ma_mean(hard, easy),
        _share(pairs, lambda pair: pair.gain),
        _share(pairs, lambda pair: pair.harm),
        _difference(pairs),
        tuple(pair.question_id for pair in pairs if pair.gain == 1),
        tuple(pair.question_id for pair in pairs if pair.harm == 1),
    )


def _share(pairs: Sequence[PairedQuestion], value: Callable[[PairedQuestion], float]) -> Estimate:
    if not pairs:
        return Estimate(None, None, 0)
    values = [value(pair) for pair in pairs]
    return Estimate(mean(values), clustered_interval(values, [pair.cluster for pair in pairs]), len(pairs))


def _ma_mean(hard: Sequence[PairedQuestion], easy: Sequence[PairedQuestion]) -> Estimate:
    """Computes the mean of MA_tool and MA_text, with a bootstrap over the clusters of both."""
    if not hard or not easy:
        return Estimate(None, None, len(hard) + len(easy))
    clusters: dict[str, list[PairedQuestion]] = {}
    for pair in [*hard, *easy]:
        clusters.setdefault(pair.cluster, []).append(pair)
    members = list(clusters.values())
    sums = [
        (
            sum(pair.call_rate for pair in group if pair.is_hard),
            sum(pair.is_hard for pair in group),
            sum(1 - pair.call_rate for pair in group if pair.is_easy),
            sum(pair.is_easy for pair in group),
        )
        for group in members
    ]

    def statistic(indices: Sequence[int]) -> float | None:
        called, hard_n, kept, easy_n = (sum(column) for column in zip(*(sums[index] for index in indices), strict=True))
        return None if not hard_n or not easy_n else (called / hard_n + kept / easy_n) / 2

    value = statistic(range(len(members)))
    return Estimate(value, bootstrap_interval(len(members), statistic), len(hard) + len(easy))


def _difference(pairs: Sequence[PairedQuestion]) -> Estimate:
    """Computes gain minus harm, the paired difference of the accuracies, with a bootstrap over clusters."""
    totals = ClusterTotals.of([pair.gain - pair.harm for pair in pairs], [pair.cluster for pair in pairs])
    interval = percentile_interval(bootstrap_means(totals)) if len(totals.sums) > 1 else None
    return Estimate(totals.mean, interval, len(pairs))


def benefits(run: AnalyzedRun, no_tools: AnalyzedRun | None = None) -> list[ToolBenefit]:
    """Compares every policy with its answers without tools.

    Args:
        no_tools: another run, whose policies without tools are the reference, or all of them if every one had tools;
            None: the policies of `run` itself that had none (the baseline `no_tools`, the tool set `none`).
    """
    own = run.evaluations()
    other = own if no_tools is None else no_tools.evaluations()
    source = run if no_tools is None else no_tools
    references = {key: rows for key, rows in other.items() if not has_tools(rows)}
    if no_tools is not None and not references:
        references = other
    found = []
    for (benchmark, stage), answers in own.items():
        if not has_tools(answers):
            continue
        for (place, reference), others in references.items():
            if place != benchmark or (no_tools is None and not _same_policy(stage, reference)):
                continue
            title = source.title(reference)
            result = tool_benefit(benchmark, run.title(stage), title, answers, others)
            if result is not None:
                found.append(result)
    return found


def _same_policy(stage: str, reference: str) -> bool:
    """Returns True if `stage` has the weights of a policy without tools: the baseline has those of `evaluate`."""
    policy = "evaluate" if reference == "no_tools" else reference.removesuffix("-none")
    return stage == policy or stage.startswith(f"{policy}-")


def benefit_table(found: Sequence[ToolBenefit]) -> FigureTable:
    """Returns one row per benchmark, policy and measure."""
    rows = []
    for result in found:
        measures = (
            ("MA_tool", result.ma_tool),
            ("MA_text", result.ma_text),
            ("MA_mean", result.ma_mean),
            ("Tool-Gain", result.gain),
            ("Tool-Harm", result.harm),
            ("ΔTE", result.delta),
        )
        for name, estimate in measures:
            low, high = estimate.interval or (None, None)
            place = (result.benchmark, result.policy, result.reference, *result.samples)
            rows.append((*place, name, estimate.value, low, high, estimate.n))
    columns = (
        "benchmark", "policy", "without tools", "samples with", "samples without",
        "measure", "value", "interval low", "interval high", "questions",
    )  # fmt: skip
    return FigureTable("tool_benefit", "Benefit of tools", columns, tuple(rows))
