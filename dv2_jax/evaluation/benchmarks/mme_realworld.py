"""MME-RealWorld: questions about large photographs, charts and aerial images (arXiv 2408.13257)."""

from __future__ import annotations

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import columns_of
from dv2_jax.evaluation.benchmarks.letter_benchmark import LetterBenchmark
from dv2_jax.evaluation.scorers.literal_lists import read_list

OPTIONS = "multi-choice options"
_HEADING = "The choices are listed below:\n"
_INSTRUCTION = (
    "Select the best answer to the above multiple-choice question based on the image. "
    "Respond with only the letter (A, B, C, D, or E) of the correct option. \n"
    "The best answer is:"
)


@register_benchmark
class MMERealWorld(LetterBenchmark):
    """MME-RealWorld, English. The options are a list literal, or a text that has its heading already."""

    name = "mme_realworld"
    title = "MME-RealWorld"
    files = ("MME-RealWorld.tsv",)
    columns = ("question", "answer", "category", OPTIONS)
    published_rows = 23_609

    def prompt(self, question: Question) -> str:
        options = columns_of(question)[OPTIONS]
        if (items := read_list(options)) is not None:
            options = _HEADING + "\n".join(items)
        return f"{question.text} {options}\n{_INSTRUCTION}"


@register_benchmark
class MMERealWorldLite(MMERealWorld):
    """The part of MME-RealWorld that is published for quick evaluations."""

    name = "mme_realworld_lite"
    title = "MME-RealWorld-Lite"
    files = ("MME-RealWorld-Lite.tsv", "mme_realworld_lite.tsv")
    published_rows = 1_919
