"""The command evaluate with a scripted engine in place of the model: everything else is real.

`python -m tests.evaluation.scripted_evaluation --config.…` runs it as a process of its own. Environment variables:
`SCRIPTED_LOG`, a file to which the id of every started answer is appended; `SCRIPTED_SLEEP_S`, seconds per step of the
engine; `SCRIPTED_QUESTIONS`, their number.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Generator, Iterable

import numpy as np
from PIL import Image

from dv2_jax import evaluate
from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.agent.trajectory import Finish
from dv2_jax.config import Config, SamplingConfig, load
from dv2_jax.data.question import Question
from dv2_jax.evaluation.answerers.answerer import Answer, AnswerRequest
from dv2_jax.evaluation.answerers.own_engine import OwnEngine
from dv2_jax.evaluation.baselines import RefusingTools
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark, Score
from dv2_jax.rollout.scheduler import RolloutScheduler
from tests.rollout.scripted_engine import ScriptedEngine

LOG, SLEEP, COUNT = "SCRIPTED_LOG", "SCRIPTED_SLEEP_S", "SCRIPTED_QUESTIONS"
SUMS = "tests.evaluation.scripted_evaluation:Sums"


def count() -> int:
    return int(os.environ.get(COUNT, "12"))


class Sums(Benchmark):
    """Sums of two numbers, of which the script answers two of three correctly."""

    name = "sums"
    source = "made here"
    protocol = "exact number"
    suffix = ""

    def load(self, config, read):
        return [
            Question(f"sum-{i:04d}", "reasoning", "reason", f"What is {i} + {i}?", (), str(2 * i))
            for i in range(count())
        ]

    def prompt(self, question):
        return question.text + self.suffix

    def score(self, question, answer):
        return Score(float(answer.prediction == question.answer), group=f"last digit {question.answer[-1]}")


def script(trajectory_id: str, turn: int) -> str:
    number = int(trajectory_id.split("#")[0].split("-")[1])
    sample = int(trajectory_id.partition("#")[2] or 0)
    right = 2 * number if (number + sample) % 3 else -1
    return f"<think>x</think>\n<answer>{right}</answer>"


class LoggingEngine(ScriptedEngine):
    """Appends the id of every sequence to a file before anything else."""

    def add_sequence(self, seq_id, key):
        if path := os.environ.get(LOG):
            with open(path, "a") as file:
                file.write(f"{seq_id.trajectory_id}\n")
        super().add_sequence(seq_id, key)

    def step(self):
        time.sleep(float(os.environ.get(SLEEP, "0")))
        return super().step()


class FailingAnswerer(OwnEngine):
    """Replaces answers by failures: `fails(request)` returns the reason, or an empty text."""

    def __init__(self, scheduler, fails: Callable[[AnswerRequest], str]):
        super().__init__(scheduler)
        self.fails = fails

    def answers(self, requests: Iterable[AnswerRequest]) -> Generator[Answer, None, None]:
        for answer in super().answers(requests):
            if reason := self.fails(answer.request):
                answer.trajectory.finish, answer.trajectory.dropped = Finish.LOST, True
                answer = Answer(answer.request, answer.trajectory, reason)
            yield answer


class ScriptedEngines:
    """Stands for `evaluate._Engines`; `started` lists the ids of all answers that were started in this process."""

    started: list[str] = []
    fails: Callable[[AnswerRequest], str] = staticmethod(lambda request: "")
    script: Callable[[str, int], str] = staticmethod(script)

    def __init__(self, evaluator, stack):
        self.evaluator = evaluator

    def answerer(self, run):
        config = self.evaluator.config
        encoder = PromptEncoder(self.evaluator.tokenizer, config.image, run.agent)

        def logged(trajectory_id: str, turn: int) -> str:
            type(self).started.append(trajectory_id)
            return type(self).script(trajectory_id, turn)

        engine = LoggingEngine(encoder.chat, logged)
        scheduler = RolloutScheduler(engine, RefusingTools(), encoder, run.agent, config.tools, SamplingConfig())
        return FailingAnswerer(scheduler, type(self).fails)

    def recompilations(self) -> int:
        return 0


def config_of(root, *words: str) -> Config:
    return load(
        [f"--config.run.root={root}", "--config.model.init=random", f"--config.eval.benchmarks={SUMS}", *words],
        command="evaluate",
        default_config="configs/evaluate.py",
    )


def noise_png(seed: int, side: int) -> bytes:
    """Returns an image that cannot be compressed: about 3 * side**2 bytes."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG", compress_level=0)
    return out.getvalue()


if __name__ == "__main__":
    evaluate._Engines = ScriptedEngines
    evaluate.main()
