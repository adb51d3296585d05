"""Trajectories of the scripted teacher, made by the rollout itself.

The teacher stands where the engine stands: the same scheduler parses its turns, sends its tool calls to the real
service and appends their results, so ids, masks and budgets are those of any rollout.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dv2_jax.agent.parser import STOP_STRINGS
from dv2_jax.agent.prompt_encoder import SpliceCodec
from dv2_jax.agent.trajectory import Trajectory, TurnRecord
from dv2_jax.config import EngineConfig, SamplingConfig, ToolsConfig
from dv2_jax.data.question import Question
from dv2_jax.engine.engine import EngineStats, TurnOutput
from dv2_jax.rewards.matching import equivalent
from dv2_jax.rewards.rules import final_answer
from dv2_jax.rollout.scheduler import RolloutRequest, RolloutScheduler, Tools
from dv2_jax.toy.scripted import CannotSolve, Feedback, Play, play
from dv2_jax.toy.styles import Habits, Mood

_STDOUT = re.compile(r"stdout:\n```\n(.*?)\n```", re.DOTALL)
_PAGE = re.compile(r"^\d+\. \[(.*?)\]\(.*?\)(?:\nDate published: .*)?\n\n(.*)$", re.MULTILINE)
_PICTURE = re.compile(r"^\d+\. <image>\n\[(.*?)\] ", re.MULTILINE)


def read_observation(record: TurnRecord) -> Feedback:
    """What a reader of the dialogue sees of a tool's answer."""
    text = record.observation or ""
    stdout = _STDOUT.search(text)
    items = [(title, snippet) for title, snippet in _PAGE.findall(text)]
    items += [(title, "") for title in _PICTURE.findall(text)]
    return Feedback(stdout.group(1) if stdout else "", record.images, tuple(items))


@dataclass
class _Lesson:
    play: Play
    next: str | None  # the turn to say; None: the teacher has given up


@dataclass
class ScriptedPolicy:
    """Answers `generate` with the teacher's next turn: the part of the engine that the scheduler uses."""

    codec: SpliceCodec
    questions: dict[str, Question]  # by trajectory id
    habits: Habits
    seed: int
    config: EngineConfig = field(default_factory=EngineConfig)
    stats: EngineStats = field(default_factory=EngineStats)
    failures: dict[str, str] = field(default_factory=dict)  # trajectory id: why it was given up
    waiting: int = 0  # every turn is ready at once

    def __post_init__(self) -> None:
        self._lessons: dict[str, _Lesson] = {}
        self._ready: deque[TurnOutput] = deque()

    def open(self, seq_id: str, key: int) -> None:
        trajectory = seq_id.split(":", 1)[1].rsplit(":", 1)[0]
        rng = np.random.default_rng([self.seed, key])
        lesson = play(self.questions[trajectory], Mood.draw(self.habits, rng), rng)
        self._lessons[trajectory] = _Lesson(lesson, next(lesson))

    def append(self, seq_id: str, token_ids: Sequence[int], pictures: Sequence = ()) -> None:
        pass

    def generate(self, seq_id: str, max_new_tokens: int, temperature: float) -> None:
        lesson = self._lessons[seq_id.split(":", 1)[1].rsplit(":", 1)[0]]
        text = lesson.next if lesson.next is not None else "</think>\n<answer>unknown</answer>"
        ids = self.codec.tokenizer.encode(text)
        stops = text.endswith(STOP_STRINGS)
        if not stops:
            ids.append(self.codec.im_end)
        finish = "stop" if stops else "eos"
        if len(ids) > max_new_tokens:
            ids, finish = ids[:max_new_tokens], "length"
        self.stats.sampled_tokens += len(ids)
        self._ready.append(TurnOutput(seq_id, ids, [0.0] * len(ids), finish, -1))

    def observe(self, trajectory: Trajectory, record: TurnRecord) -> None:
        """`on_turn` of the scheduler: lets the teacher read the answer and prepare what to say next."""
        if record.observation is None:
            return
        lesson = self._lessons[trajectory.id]
        try:
            lesson.next = lesson.play.send(read_observation(record))
        except CannotSolve as error:
            lesson.next, self.failures[trajectory.id] = None, str(error)

    def tick(self) -> list[TurnOutput]:
        turns = list(self._ready)
        self._ready.clear()
        return turns

    @property
    def idle(self) -> bool:
        return not self._ready

    def release(self, seq_id: str) -> None:
        self._lessons.pop(seq_id.split(":", 1)[1].rsplit(":", 1)[0], None)


def solve(
    questions: Sequence[Question], tools: Tools, codec: SpliceCodec, seed: int, habits: Habits | None = None
) -> tuple[list[Trajectory], dict[str, str]]:
    """Every trajectory of the teacher, and why the ones that it gave up were given up."""
    names = {f"{question.id}/teacher": question for question in questions}
    policy = ScriptedPolicy(codec, names, habits or Habits(), seed)
    scheduler = RolloutScheduler(
        policy, tools, codec, codec.tokenizer, codec.agent_config, ToolsConfig(), SamplingConfig(temperature=0.0)
    )
    requests = [RolloutRequest(question, name, key) for key, (name, question) in enumerate(names.items())]
    return scheduler.run(requests, on_turn=policy.observe), policy.failures


def solve_all(
    questions: Sequence[Question], tools: Tools, codec: SpliceCodec, seed: int, habits: Habits | None = None
) -> list[Trajectory]:
    """The teacher's trajectories whose final answer is right (as the released set keeps no others)."""
    trajectories, _ = solve(questions, tools, codec, seed, habits)
    return [trajectory for trajectory in trajectories if is_right(trajectory)]


def is_right(trajectory: Trajectory) -> bool:
    question = trajectory.question
    answer = final_answer(trajectory.turns[-1].text) if trajectory.turns else None
    return answer is not None and equivalent(answer, question.answer, question.verifier, question.meta)
