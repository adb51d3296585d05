"""The scripted solver of the embedded tasks as a teacher. It cannot solve other questions."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.config import Config, SamplingConfig
from dv2_jax.evaluation.answerers.answerer import Answer, Answerer, AnswerRequest
from dv2_jax.rollout.scheduler import RolloutRequest, RolloutScheduler, ToolBackend
from dv2_jax.toy.styles import StyleMix
from dv2_jax.toy.teacher import ScriptedPolicy

CHUNK = 64  # questions that are solved at the same time


class ScriptedTeacher(Answerer):
    """Answers with trajectories of the scripted solver, whose calls are executed by the real tools."""

    def __init__(self, config: Config, encoder: PromptEncoder, tools: ToolBackend):
        self.config, self.encoder, self.tools = config, encoder, tools

    def answers(self, requests: Iterable[AnswerRequest]) -> Generator[Answer, None, None]:
        source = iter(requests)
        while chunk := list(islice(source, CHUNK)):
            yield from self._solve(chunk)

    def _solve(self, requests: list[AnswerRequest]) -> Iterator[Answer]:
        by_id = {f"{request.id}/teacher{request.attempt}": request for request in requests}
        questions = {name: request.question for name, request in by_id.items()}
        policy = ScriptedPolicy(self.encoder, questions, StyleMix(), self.config.run.seed)
        sampling = SamplingConfig(temperature=0.0)
        scheduler = RolloutScheduler(policy, self.tools, self.encoder, self.config.agent, self.config.tools, sampling)
        rollouts = [RolloutRequest(request.question, name, request.seed) for name, request in by_id.items()]
        for trajectory in scheduler.run(rollouts, on_turn=policy.observe):
            sampled = trajectory.sampled_tokens
            lost = "the tools service lost the trajectory" if trajectory.dropped else ""
            yield Answer(
                by_id[trajectory.id],
                trajectory,
                failure=policy.failures.get(trajectory.id, lost),
                prompt_tokens=len(trajectory.token_ids) - sampled,
                completion_tokens=sampled,
            )
