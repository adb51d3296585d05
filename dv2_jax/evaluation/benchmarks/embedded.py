"""The generated questions that come with the package: five skills, rendered images, search facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dv2_jax.config import Config
from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.rollout.question_sources import BUILTIN, ReadRows, eval_questions
from dv2_jax.toy.tasks import make_questions

GUESSING_SAMPLE = 1000  # training questions from which the guessing baseline counts answers


@register_benchmark
class EmbeddedTasks(Benchmark):
    """The `task.eval_size` held-out questions of `task.skills`, disjoint from the training questions."""

    name = "embedded"
    source = "generated"

    def load(self, config: Config, read: ReadRows) -> Sequence[Question]:
        return eval_questions(replace(config.task, source=BUILTIN, eval_source=""), read)

    def row_count(self, config: Config) -> int:
        return config.task.eval_size

    def guessing_questions(self, config: Config) -> Sequence[Question]:
        # A sample suffices to find the commonest answer of each kind, and rendering the images takes time.
        task = config.task
        return make_questions("train", min(task.train_size, GUESSING_SAMPLE), task.seed, task.skills)
