"""Generates trajectories of the scripted teacher with the rollout's own scheduler.

The teacher replaces the engine: the same scheduler parses its turns, sends its tool calls to the real service and
appends their results, so ids, masks and budgets are those of any rollout.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.agent.trajectory import Trajectory, TurnRecord
from dv2_jax.config import SamplingConfig, ToolsConfig
from dv2_jax.data.question import Question
from dv2_jax.rewards.matching import answers_match
from dv2_jax.rewards.rules import final_answer
from dv2_jax.rollout.scheduler import AttemptId, RolloutRequest, RolloutScheduler, ToolBackend
from dv2_jax.rollout.text_engine import TextEngine
from dv2_jax.toy.scripted import Demonstration, DemonstrationFailed, Feedback, demonstrate
from dv2_jax.toy.styles import StyleMix, TrajectoryStyle

_STDOUT = re.compile(r"stdout:\n```\n(.*?)\n```", re.DOTALL)
_PAGE = re.compile(r"^\d+\. \[(.*?)\]\(.*?\)(?:\nDate published: .*)?\n\n(.*)$", re.MULTILINE)
_IMAGE_RESULT = re.compile(r"^\d+\. <image>\n\[(.*?)\] ", re.MULTILINE)


def parse_feedback(record: TurnRecord) -> Feedback:
    """Extracts stdout, images and search results from the observation of a turn."""
    text = record.observation or ""
    stdout = _STDOUT.search(text)
    items = [(title, snippet) for title, snippet in _PAGE.findall(text)]
    items += [(title, "") for title in _IMAGE_RESULT.findall(text)]
    return Feedback(stdout.group(1) if stdout else "", record.images, tuple(items))


@dataclass
class _RunningDemonstration:
    turns: Demonstration
    next_turn: str | None  # None after the demonstration failed


class ScriptedPolicy(TextEngine):
    """Generates the teacher's turns.

    Args:
        questions: by trajectory id.

    Attributes:
        failures: reason of failure, by trajectory id.
    """

    def __init__(self, prompt_encoder: PromptEncoder, questions: dict[str, Question], style_mix: StyleMix, seed: int):
        super().__init__(prompt_encoder)
        self.questions, self.style_mix, self.seed = questions, style_mix, seed
        self.failures: dict[str, str] = {}
        self._running: dict[str, _RunningDemonstration] = {}  # by trajectory id

    def add_sequence(self, seq_id: AttemptId, key: int) -> None:
        trajectory_id = seq_id.trajectory_id
        rng = np.random.default_rng([self.seed, key])
        turns = demonstrate(self.questions[trajectory_id], TrajectoryStyle.sample(self.style_mix, rng), rng)
        self._running[trajectory_id] = _RunningDemonstration(turns, next(turns))

    def next_text(self, seq_id: AttemptId) -> str:
        text = self._running[seq_id.trajectory_id].next_turn
        return "</think>\n<answer>unknown</answer>" if text is None else text

    def free_sequence(self, seq_id: AttemptId) -> None:
        self._running.pop(seq_id.trajectory_id, None)

    def observe(self, trajectory: Trajectory, record: TurnRecord) -> None:
        """Passes an observation to the teacher and stores its next turn (the scheduler's `on_turn` callback)."""
        if record.observation is None:
            return
        running = self._running[trajectory.id]
        try:
            running.next_turn = running.turns.send(parse_feedback(record))
        except DemonstrationFailed as error:
            running.next_turn = None
            self.failures[trajectory.id] = str(error)


def demonstrate_all(
    questions: Sequence[Question],
    tools: ToolBackend,
    prompt_encoder: PromptEncoder,
    seed: int,
    style_mix: StyleMix | None = None,
    tools_config: ToolsConfig | None = None,
) -> tuple[list[Trajectory], dict[str, str]]:
    """Returns the teacher's trajectory for every question, and the reason of failure by trajectory id.

    `tools_config` holds the time limits and retries of its tool requests (default: those of `ToolsConfig()`).
    """
    names = {f"{question.id}/teacher": question for question in questions}
    policy = ScriptedPolicy(prompt_encoder, names, style_mix or StyleMix(), seed)
    scheduler = RolloutScheduler(
        policy,
        tools,
        prompt_encoder,
        prompt_encoder.agent_config,
        tools_config or ToolsConfig(),
        SamplingConfig(temperature=0.0),
    )
    requests = [RolloutRequest(question, name, key) for key, (name, question) in enumerate(names.items())]
    return scheduler.run(requests, on_turn=policy.observe), policy.failures


def correct_demonstrations(
    questions: Sequence[Question],
    tools: ToolBackend,
    prompt_encoder: PromptEncoder,
    seed: int,
    style_mix: StyleMix | None = None,
    tools_config: ToolsConfig | None = None,
) -> list[Trajectory]:
    """Returns the teacher's trajectories with a correct final answer; like the released set, it drops the others."""
    trajectories, _ = demonstrate_all(questions, tools, prompt_encoder, seed, style_mix, tools_config)
    return [trajectory for trajectory in trajectories if has_correct_answer(trajectory)]


def has_correct_answer(trajectory: Trajectory) -> bool:
    question = trajectory.question
    answer = final_answer(trajectory.turns[-1].text) if trajectory.turns else None
    return answer is not None and answers_match(answer, question.answer, question.verifier, question.meta)
