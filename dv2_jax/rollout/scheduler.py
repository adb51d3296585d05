"""Schedules trajectories asynchronously between the engine and the tools, without a barrier between turns.

Each iteration of the loop calls `Engine.step`, parses the finished turns, submits their tool requests in one batch, and
queues the tool results that have arrived as observations for prefill. A trajectory that waits for a tool is parked in
the engine.

A tool request ends exactly once: with its result or with a timeout. Infrastructure failures are never shown to the
policy: the trajectory is restarted up to `ToolsConfig.retries` times and then dropped from the loss.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dv2_jax.agent.agent_images import sandbox_images
from dv2_jax.agent.observation import RETRYABLE_STATUSES
from dv2_jax.agent.parser import ParsedTurn
from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.agent.trajectory import Trajectory, TurnRecord
from dv2_jax.agent.trajectory_builder import TrajectoryBuilder
from dv2_jax.config import AgentConfig, SamplingConfig, ToolsConfig
from dv2_jax.data.chat_encoder import Segment
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.engine.engine import Engine, TurnOutput
from dv2_jax.rollout.stats import RolloutStats
from tools_service.client import ExecRequest, ImageSearchRequest, Status, TextSearchRequest, ToolResult

Request = ExecRequest | TextSearchRequest | ImageSearchRequest
IDLE_POLL_S = 0.05  # seconds to wait for a tool result while the engine is idle


class ToolBackend(Protocol):
    """The methods of `tools_service.client.ToolsClient` that the scheduler uses."""

    def submit(self, requests: Sequence[Request]) -> None: ...
    def poll(self, timeout_s: float = 0.0) -> list[ToolResult]: ...
    def close_sessions(self, ids: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class RolloutRequest:
    """One trajectory to roll out. `key` seeds its random numbers: equal keys give equal samples."""

    question: Question
    trajectory_id: str
    key: int


@dataclass
class _Attempt:
    """State of one attempt to roll out a request."""

    request: RolloutRequest
    index: int  # index of the request
    number: int  # 0 for the first attempt
    seq_id: str  # id of the engine's sequence and of the sandbox session
    builder: TrajectoryBuilder
    used_session: bool = False
    submitted_at: float = 0.0  # time at which the pending tool request was submitted, seconds
    reported_turns: int = 0  # number of turns passed to `on_turn`


@dataclass
class _RunState:
    """State of one call of `run`."""

    queue: deque[tuple[int, RolloutRequest, int]]
    done: list[Trajectory | None]
    on_finish: Callable[[Trajectory], None] | None
    on_turn: Callable[[Trajectory, TurnRecord], None] | None
    running: dict[str, _Attempt] = field(default_factory=dict)
    waiting: dict[str, _Attempt] = field(default_factory=dict)  # by tool request id
    expired: set[str] = field(default_factory=set)  # ids of timed-out requests, whose late results are ignored
    outbox: list[Request] = field(default_factory=list)
    finished_sessions: list[str] = field(default_factory=list)


class RolloutScheduler:
    """Rolls out questions to trajectories.

    Args:
        engine: engine whose weights have been set.
        tools: client of the tools service.
        prompt_encoder: encodes questions and observations to token ids and images.
    """

    def __init__(
        self,
        engine: Engine,
        tools: ToolBackend,
        prompt_encoder: PromptEncoder,
        tokenizer: Tokenizer,
        agent: AgentConfig,
        tools_config: ToolsConfig,
        sampling: SamplingConfig,
    ):
        self.engine, self.tools, self.prompt_encoder, self.tokenizer = engine, tools, prompt_encoder, tokenizer
        self.agent, self.tools_config, self.sampling = agent, tools_config, sampling
        self._stats = RolloutStats()

    @property
    def stats(self) -> dict[str, float]:
        """Counters of the last `run`; see `RolloutStats`."""
        return self._stats.summary()

    def run(
        self,
        requests: Sequence[RolloutRequest],
        on_finish: Callable[[Trajectory], None] | None = None,
        on_turn: Callable[[Trajectory, TurnRecord], None] | None = None,
    ) -> list[Trajectory]:
        """Rolls out all requests and returns their trajectories in the order of the requests.

        Args:
            on_finish: called with each trajectory as it ends.
            on_turn: called after each turn, once its observation is known.

        Raises:
            ValueError: if two requests have the same trajectory id.
        """
        if len({request.trajectory_id for request in requests}) != len(requests):
            raise ValueError("trajectory ids must differ: they name engine sequences and sandbox sessions")
        # Request ids are idempotency keys of the service: two runs over the same questions must not share them.
        self._run_name = uuid.uuid4().hex[:12]
        self._stats = RolloutStats(len(requests), self.engine.stats)
        queue = deque((index, request, 0) for index, request in enumerate(requests))
        state = _RunState(queue, [None] * len(requests), on_finish, on_turn)
        try:
            while state.queue or state.running:
                self._step(state)
        finally:
            for attempt in state.running.values():
                self.engine.free_sequence(attempt.seq_id)
            self._close_sessions(state, [attempt.seq_id for attempt in state.running.values() if attempt.used_session])
        self._stats.finish(self.engine.stats)
        return state.done

    def _step(self, state: _RunState) -> None:
        # Keep the engine's admission queue short: the remaining questions are tokenized while the device computes.
        while state.queue and self.engine.waiting < 2 * self.engine.config.prefill_rows:
            self._start_attempt(state, *state.queue.popleft())
        turns = self.engine.step()
        for turn in turns:
            self._process_turn(state, state.running[turn.seq_id], turn)
        if state.outbox:
            self.tools.submit(state.outbox)
            self._stats.requests += len(state.outbox)
            state.outbox = []
        stuck = self.engine.idle and not turns
        if stuck and not state.waiting and state.running and not state.queue:
            raise RuntimeError(
                f"{len(state.running)} trajectories are running, but neither the engine nor the tools have work"
            )
        if state.waiting:
            for result in self.tools.poll(IDLE_POLL_S if stuck else 0.0):
                self._process_tool_result(state, result)
        self._expire_requests(state)
        self._close_sessions(state, state.finished_sessions)
        state.finished_sessions = []

    def _start_attempt(self, state: _RunState, index: int, request: RolloutRequest, attempt_number: int) -> None:
        builder = TrajectoryBuilder(self.prompt_encoder, request.question, request.trajectory_id)
        seq_id = f"{self._run_name}:{request.trajectory_id}:{attempt_number}"
        attempt = _Attempt(request, index, attempt_number, seq_id, builder)
        state.running[seq_id] = attempt
        self.engine.add_sequence(seq_id, request.key)
        self._request_next_turn(state, attempt, builder.prompt)

    def _request_next_turn(self, state: _RunState, attempt: _Attempt, segment: Segment | None) -> None:
        """Appends `segment` (prompt or observation) and requests the next turn, unless the trajectory is over."""
        if attempt.builder.finish is not None:
            self._finish(state, attempt)
            return
        self.engine.append(attempt.seq_id, segment.token_ids, segment.images)
        self.engine.request_turn(attempt.seq_id, attempt.builder.max_new_tokens, self.sampling.temperature)

    def _process_turn(self, state: _RunState, attempt: _Attempt, output: TurnOutput) -> None:
        builder = attempt.builder
        turn = builder.append_generation(
            output.token_ids, output.logprobs, output.version, ended=output.finish != "length"
        )
        self._stats.turns += 1
        if builder.finish is not None:
            self._finish(state, attempt)
        elif not turn.calls_tool:
            self._append_observation(state, attempt, None)
        else:
            self._request_tool(state, attempt, turn)

    def _request_tool(self, state: _RunState, attempt: _Attempt, turn: ParsedTurn) -> None:
        request_id = f"{attempt.seq_id}:{len(attempt.builder.trajectory().turns)}"
        question = attempt.request.question
        if turn.kind == "image_search" and not question.images:
            message = "the question has no picture to search with"
            self._append_observation(
                state, attempt, ToolResult(request_id, "image_search", Status.REFUSED, message=message)
            )
            return
        if turn.kind == "code":
            images = sandbox_images(question, self.agent, self.prompt_encoder.image_config)
            timeout = self.tools_config.cell_timeout_s
            state.outbox.append(ExecRequest(request_id, attempt.seq_id, turn.payload, timeout, images))
            attempt.used_session = True
        elif turn.kind == "search":
            state.outbox.append(TextSearchRequest(request_id, turn.payload, self.agent.search_results))
        else:
            # Always the question's first image, as released.
            state.outbox.append(ImageSearchRequest(request_id, question.images[0], self.agent.search_results))
        attempt.submitted_at = time.perf_counter()
        state.waiting[request_id] = attempt

    def _process_tool_result(self, state: _RunState, result: ToolResult) -> None:
        attempt = state.waiting.pop(result.request_id, None)
        if attempt is None:
            late = result.request_id in state.expired
            if late or not result.request_id.startswith(self._run_name):
                return  # timed out here, or of an earlier run that was interrupted
            raise RuntimeError(f"the tools answered request {result.request_id!r}, which is not open")
        self._stats.record_tool_result(
            result.kind, result.status.name, time.perf_counter() - attempt.submitted_at, result.wall_ms
        )
        if result.status.name in RETRYABLE_STATUSES:
            self._retry_or_drop(state, attempt)
        else:
            self._append_observation(state, attempt, result)

    def _expire_requests(self, state: _RunState) -> None:
        """Ends requests that have timed out; their late results are ignored."""
        limit = time.perf_counter() - self.tools_config.request_timeout_s
        for request_id in [id_ for id_, attempt in state.waiting.items() if attempt.submitted_at < limit]:
            attempt = state.waiting.pop(request_id)
            state.expired.add(request_id)
            self._stats.expired += 1
            self._retry_or_drop(state, attempt)

    def _append_observation(self, state: _RunState, attempt: _Attempt, result: ToolResult | None) -> None:
        segment = attempt.builder.append_tool_output(result, wall_ms=result.wall_ms if result is not None else 0.0)
        self._report_turns(state, attempt)
        self._request_next_turn(state, attempt, segment)

    def _retry_or_drop(self, state: _RunState, attempt: _Attempt) -> None:
        if attempt.number < self.tools_config.retries:
            self._stats.retries += 1
            self._remove(state, attempt)
            state.queue.appendleft((attempt.index, attempt.request, attempt.number + 1))
        else:
            attempt.builder.mark_lost()
            self._stats.dropped += 1
            self._finish(state, attempt)

    def _finish(self, state: _RunState, attempt: _Attempt) -> None:
        self._report_turns(state, attempt)
        trajectory = attempt.builder.trajectory()
        self._remove(state, attempt)
        state.done[attempt.index] = trajectory
        if state.on_finish is not None:
            state.on_finish(trajectory)

    def _remove(self, state: _RunState, attempt: _Attempt) -> None:
        del state.running[attempt.seq_id]
        self.engine.free_sequence(attempt.seq_id)
        if attempt.used_session:
            state.finished_sessions.append(attempt.seq_id)

    def _report_turns(self, state: _RunState, attempt: _Attempt) -> None:
        trajectory = attempt.builder.trajectory()
        for record in trajectory.turns[attempt.reported_turns :]:
            attempt.reported_turns += 1
            if state.on_turn is not None:
                state.on_turn(trajectory, record)

    def _close_sessions(self, state: _RunState, names: Sequence[str]) -> None:
        if names:
            self.tools.close_sessions(list(names))
