"""Answers with the engine of this process, in the same way as rollouts of training."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import closing

from dv2_jax.evaluation.answerers.answerer import Answer, Answerer, AnswerRequest
from dv2_jax.rollout.scheduler import RolloutRequest, RolloutScheduler

LOST = "the tools service lost the trajectory"


class OwnEngine(Answerer):
    """Answers with a scheduler, whose sampling, prompts and tools are those of the stage."""

    def __init__(self, scheduler: RolloutScheduler):
        self.scheduler = scheduler

    def answers(self, requests: Iterable[AnswerRequest]) -> Generator[Answer, None, None]:
        open_requests: dict[int, tuple[AnswerRequest, float]] = {}

        def rollouts() -> Iterable[RolloutRequest]:
            for index, request in enumerate(requests):
                open_requests[index] = request, time.perf_counter()
                yield RolloutRequest(request.question, request.id, request.seed)

        with closing(self.scheduler.stream(rollouts())) as finished:
            for index, trajectory in finished:
                request, started = open_requests.pop(index)
                sampled = trajectory.sampled_tokens
                yield Answer(
                    request,
                    trajectory,
                    failure=(trajectory.row_error or LOST) if trajectory.dropped else "",
                    seconds=round(time.perf_counter() - started, 3),
                    prompt_tokens=len(trajectory.token_ids) - sampled,
                    completion_tokens=sampled,
                )
