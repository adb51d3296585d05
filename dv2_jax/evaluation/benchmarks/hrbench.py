"""HR-Bench: questions about images of 4K and 8K, each asked four times with its options rotated (arXiv 2408.15556)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.choice_benchmark import RULE, ChoiceBenchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import columns_of, group_rows, mean_of_groups, overall_of_groups


class HRBench(ChoiceBenchmark):
    """HR-Bench: the accuracy of each of the four rotations, then their mean; a question need not be right in all four."""

    columns = ("question", "answer", "A", "B", "category", "cycle_category")
    published_rows = 800
    protocol = f"{RULE}; mean over four rotations of the options"

    def details(self, question: Question) -> dict[str, Any]:
        return {"cycle": columns_of(question)["cycle_category"]}

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        groups: dict[str, list[Score]] = {}
        for score in scores:
            groups.setdefault(score.group, []).append(score)
        rows = [
            ResultRow.from_statistic(name, members, lambda drawn: mean_of_groups(drawn, _cycle))
            for name, members in groups.items()
        ]
        cycles = group_rows(scores, lambda score: [f"rotation {_cycle(score)}"])
        return [*rows, *cycles, overall_of_groups(scores, _cycle)]


def _cycle(score: Score) -> str:
    return score.details["cycle"]


@register_benchmark
class HRBench4K(HRBench):
    """HR-Bench with images of 4K."""

    name = "hrbench4k"
    title = "HRBench 4K"
    files = ("HRBench4K.tsv", "hr_bench_4k.tsv")


@register_benchmark
class HRBench8K(HRBench):
    """HR-Bench with images of 8K."""

    name = "hrbench8k"
    title = "HRBench 8K"
    files = ("HRBench8K.tsv", "hr_bench_8k.tsv")
