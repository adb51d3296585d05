"""Trajectories between the engine and the tools, each at its own pace.

There is no barrier between turns. One round of the loop: the engine's tick returns the turns that are over; they are
parsed; the tool requests that they ask for leave in one batch; the tool results that have come become
observations, queued for prefill. A trajectory that waits for a tool is parked in the engine.

A tool request ends exactly once: with its result, or, when none came in time, as lost. What the infrastructure did
wrong never reaches the policy: the trajectory is begun afresh, up to ``ToolsConfig.retries`` times, then it is
dropped from the loss.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dv2_jax.agent.agent_images import sandbox_pictures
from dv2_jax.agent.observation import RETRYABLE
from dv2_jax.agent.parser import Turn
from dv2_jax.agent.prompt_encoder import SpliceCodec
from dv2_jax.agent.trajectory import Trajectory, TurnRecord
from dv2_jax.agent.trajectory_builder import Transcript
from dv2_jax.config import AgentConfig, SamplingConfig, ToolsConfig
from dv2_jax.data.chat_encoder import Segment
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.engine.engine import Engine, TurnOutput
from dv2_jax.rollout.stats import RolloutStats
from tools_service.client import ExecRequest, ImageSearchRequest, Status, TextSearchRequest, ToolResult

Request = ExecRequest | TextSearchRequest | ImageSearchRequest
IDLE_POLL_S = 0.05  # how long to wait for a tool when no sequence can be computed


class Tools(Protocol):
    """What is used of a ``tools_service.client.ToolsClient``."""

    def submit(self, requests: Sequence[Request]) -> None: ...
    def poll(self, timeout_s: float = 0.0) -> list[ToolResult]: ...
    def close_sessions(self, ids: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class RolloutRequest:
    """One trajectory to roll out. ``key`` names its random numbers: equal keys, equal samples."""

    question: Question
    trajectory_id: str
    key: int


@dataclass
class _Running:
    """One attempt at a request."""

    request: RolloutRequest
    number: int  # place in the order of requests
    attempt: int
    name: str  # of the engine's sequence and of the sandbox session
    transcript: Transcript
    used_session: bool = False
    asked_at: float = 0.0  # when the request that it waits for left; seconds
    records: int = 0  # turns that have been reported


@dataclass
class _Batch:
    """What one call of ``run`` keeps."""

    queue: deque[tuple[int, RolloutRequest, int]]
    done: list[Trajectory | None]
    on_finish: Callable[[Trajectory], None] | None
    on_turn: Callable[[Trajectory, TurnRecord], None] | None
    running: dict[str, _Running] = field(default_factory=dict)
    waiting: dict[str, _Running] = field(default_factory=dict)  # by request id
    expired: set[str] = field(default_factory=set)  # requests given up: a late result has nobody to go to
    outbox: list[Request] = field(default_factory=list)
    finished_sessions: list[str] = field(default_factory=list)


class RolloutScheduler:
    """Rolls out questions.

    Args:
        engine: with its weights set.
        tools: client of the tools service.
        codec: questions and observations to ids; brings the agent's and the picture's configuration.
    """

    def __init__(
        self,
        engine: Engine,
        tools: Tools,
        codec: SpliceCodec,
        tokenizer: Tokenizer,
        agent: AgentConfig,
        tools_config: ToolsConfig,
        sampling: SamplingConfig,
    ):
        self.engine, self.tools, self.codec, self.tokenizer = engine, tools, codec, tokenizer
        self.agent, self.tools_config, self.sampling = agent, tools_config, sampling
        self._stats = RolloutStats()

    @property
    def stats(self) -> dict[str, float]:
        """Counters of the last ``run``; see `RolloutStats`."""
        return self._stats.summary()

    def run(
        self,
        requests: Sequence[RolloutRequest],
        on_finish: Callable[[Trajectory], None] | None = None,
        on_turn: Callable[[Trajectory, TurnRecord], None] | None = None,
    ) -> list[Trajectory]:
        """Rolls all requests out; trajectories in the order of the requests.

        Args:
            on_finish: called with each trajectory as it ends.
            on_turn: called after each turn, once its observation is known.
        """
        if len({request.trajectory_id for request in requests}) != len(requests):
            raise ValueError("trajectory ids must differ: they name engine sequences and sandbox sessions")
        # Services remember the results of request ids: two runs over the same questions must not share them.
        self._run_name = uuid.uuid4().hex[:12]
        self._stats = RolloutStats(len(requests), self.engine.stats)
        queue = deque((number, request, 0) for number, request in enumerate(requests))
        batch = _Batch(queue, [None] * len(requests), on_finish, on_turn)
        try:
            while batch.queue or batch.running:
                self._round(batch)
        finally:
            for running in batch.running.values():
                self.engine.release(running.name)
            self._close_sessions(batch, [running.name for running in batch.running.values() if running.used_session])
        self._stats.end(self.engine.stats)
        return batch.done

    def _round(self, batch: _Batch) -> None:
        # A short queue in front of the engine is enough; questions are tokenized while the device works.
        while batch.queue and self.engine.waiting < 2 * self.engine.config.prefill_rows:
            self._begin(batch, *batch.queue.popleft())
        turns = self.engine.tick()
        for turn in turns:
            self._turn_over(batch, batch.running[turn.seq_id], turn)
        if batch.outbox:
            self.tools.submit(batch.outbox)
            self._stats.requests += len(batch.outbox)
            batch.outbox = []
        stuck = self.engine.idle and not turns
        if stuck and not batch.waiting and batch.running and not batch.queue:
            raise RuntimeError(f"{len(batch.running)} trajectories run, but neither engine nor tools have work")
        for result in self.tools.poll(IDLE_POLL_S if stuck else 0.0) if batch.waiting else ():
            self._answered(batch, result)
        self._expire(batch)
        self._close_sessions(batch, batch.finished_sessions)
        batch.finished_sessions = []

    def _begin(self, batch: _Batch, number: int, request: RolloutRequest, attempt: int) -> None:
        transcript = Transcript(self.codec, request.question, request.trajectory_id)
        name = f"{self._run_name}:{request.trajectory_id}:{attempt}"
        running = _Running(request, number, attempt, name, transcript)
        batch.running[name] = running
        self.engine.open(name, request.key)
        self._continue(batch, running, transcript.prompt)

    def _continue(self, batch: _Batch, running: _Running, segment: Segment | None) -> None:
        """Prefills what was appended and asks for the next turn, unless the trajectory is over."""
        if running.transcript.finish is not None:
            self._finish(batch, running)
            return
        self.engine.append(running.name, segment.token_ids, segment.images)
        self.engine.generate(running.name, running.transcript.allowance, self.sampling.temperature)

    def _turn_over(self, batch: _Batch, running: _Running, output: TurnOutput) -> None:
        transcript = running.transcript
        turn = transcript.add_sampled(
            output.token_ids, output.logprobs, output.version, ended=output.finish != "length"
        )
        self._stats.turns += 1
        if transcript.finish is not None:
            self._finish(batch, running)
        elif not turn.calls_tool:
            self._observe(batch, running, None)
        else:
            self._ask(batch, running, turn)

    def _ask(self, batch: _Batch, running: _Running, turn: Turn) -> None:
        request_id = f"{running.name}:{len(running.transcript.trajectory().turns)}"
        question = running.request.question
        if turn.kind == "image_search" and not question.images:
            message = "the question has no picture to search with"
            self._observe(batch, running, ToolResult(request_id, "image_search", Status.REFUSED, message=message))
            return
        if turn.kind == "code":
            pictures = sandbox_pictures(question, self.agent, self.codec.image_config)
            timeout = self.tools_config.cell_timeout_s
            batch.outbox.append(ExecRequest(request_id, running.name, turn.payload, timeout, pictures))
            running.used_session = True
        elif turn.kind == "search":
            batch.outbox.append(TextSearchRequest(request_id, turn.payload, self.agent.search_results))
        else:
            # Always the question's first picture: the released search knows no other.
            batch.outbox.append(ImageSearchRequest(request_id, question.images[0], self.agent.search_results))
        running.asked_at = time.perf_counter()
        batch.waiting[request_id] = running

    def _answered(self, batch: _Batch, result: ToolResult) -> None:
        running = batch.waiting.pop(result.request_id, None)
        if running is None:
            late = result.request_id in batch.expired
            if late or not result.request_id.startswith(self._run_name):
                return  # given up here, or by an earlier run that was interrupted
            raise RuntimeError(f"the tools answered request {result.request_id!r}, which is not open")
        self._stats.answered(result.kind, result.status.name, time.perf_counter() - running.asked_at, result.wall_ms)
        if result.status.name in RETRYABLE:
            self._lost(batch, running)
        else:
            self._observe(batch, running, result)

    def _expire(self, batch: _Batch) -> None:
        """Ends requests whose time is over: nothing ever waits for ever. A result that comes later is ignored."""
        limit = time.perf_counter() - self.tools_config.request_timeout_s
        for request_id in [id_ for id_, running in batch.waiting.items() if running.asked_at < limit]:
            running = batch.waiting.pop(request_id)
            batch.expired.add(request_id)
            self._stats.expired += 1
            self._lost(batch, running)

    def _observe(self, batch: _Batch, running: _Running, result: ToolResult | None) -> None:
        segment = running.transcript.add_result(result, wall_ms=result.wall_ms if result is not None else 0.0)
        self._report_turns(batch, running)
        self._continue(batch, running, segment)

    def _lost(self, batch: _Batch, running: _Running) -> None:
        if running.attempt < self.tools_config.retries:
            self._stats.retries += 1
            self._leave(batch, running)
            batch.queue.appendleft((running.number, running.request, running.attempt + 1))
        else:
            running.transcript.lose()
            self._stats.dropped += 1
            self._finish(batch, running)

    def _finish(self, batch: _Batch, running: _Running) -> None:
        self._report_turns(batch, running)
        trajectory = running.transcript.trajectory()
        self._leave(batch, running)
        batch.done[running.number] = trajectory
        if batch.on_finish is not None:
            batch.on_finish(trajectory)

    def _leave(self, batch: _Batch, running: _Running) -> None:
        del batch.running[running.name]
        self.engine.release(running.name)
        if running.used_session:
            batch.finished_sessions.append(running.name)

    def _report_turns(self, batch: _Batch, running: _Running) -> None:
        trajectory = running.transcript.trajectory()
        for record in trajectory.turns[running.records :]:
            running.records += 1
            if batch.on_turn is not None:
                batch.on_turn(trajectory, record)

    def _close_sessions(self, batch: _Batch, names: Sequence[str]) -> None:
        if names:
            self.tools.close_sessions(list(names))
