"""Schedules trajectories asynchronously between the engine and the tools, without a barrier between turns.

Each iteration of the loop calls `Engine.step`, parses the finished turns, submits their tool requests in one batch, and
queues the tool results that have arrived as observations for prefill. A trajectory that waits for a tool is parked in
the engine.

A tool request ends exactly once: with its result or with a timeout. Infrastructure failures are never shown to the
policy: the trajectory is restarted up to `ToolsConfig.retries` times and then dropped from the loss.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.agent.tools.base import LocalCall, ParsedTurn, Refusal, RequestContext
from dv2_jax.agent.trajectory import Finish, Trajectory, TurnRecord
from dv2_jax.agent.trajectory_builder import TrajectoryBuilder
from dv2_jax.config import AgentConfig, SamplingConfig, ToolsConfig
from dv2_jax.data.chat_encoder import Segment
from dv2_jax.data.question import Question
from dv2_jax.engine.engine import Engine
from dv2_jax.engine.engine_outputs import TurnOutput
from dv2_jax.rollout.stats import RolloutStats
from dv2_jax.rollout.tool_requests import AttemptId, ToolBackend, make_request
from tools_service.client import ExecRequest, Request, Status, ToolResult

_log = logging.getLogger(__name__)
IDLE_POLL_S = 0.05  # seconds to wait for a tool result while the engine is idle


@dataclass(frozen=True)
class RolloutRequest:
    """One trajectory to roll out. `key` seeds its random numbers: equal keys give equal samples.

    Attributes:
        temperature: of this trajectory; None: that of the scheduler.
        limits: turns and tokens of this trajectory, none above those of the engine; None: those of the scheduler.
        prompt: the encoded question, if the caller has encoded it.
    """

    question: Question
    trajectory_id: str
    key: int
    temperature: float | None = None
    limits: AgentConfig | None = None
    prompt: Segment | None = None


@dataclass
class _Attempt:
    """State of one attempt to roll out a request."""

    id: AttemptId
    request: RolloutRequest
    builder: TrajectoryBuilder
    used_session: bool = False
    submitted_at: float = 0.0  # time at which the pending tool request was submitted, seconds
    reported_turns: int = 0  # number of turns passed to `on_turn`


@dataclass
class _RunState:
    """State of one run, from `open` to `close`."""

    on_turn: Callable[[Trajectory, TurnRecord], None] | None
    queue: deque[tuple[int, RolloutRequest, int]] = field(default_factory=deque)
    added: int = 0  # number of requests so far
    ids: set[str] = field(default_factory=set)  # trajectory ids of the requests that are not finished
    finished: list[tuple[int, Trajectory]] = field(default_factory=list)  # since the last step
    running: dict[Hashable, _Attempt] = field(default_factory=dict)
    waiting: dict[str, _Attempt] = field(default_factory=dict)  # by tool request id
    expired: set[str] = field(default_factory=set)  # ids of timed-out requests, whose late results are ignored
    outbox: list[Request | LocalCall] = field(default_factory=list)
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
        agent: AgentConfig,
        tools_config: ToolsConfig,
        sampling: SamplingConfig,
    ):
        self.engine, self.tools, self.prompt_encoder = engine, tools, prompt_encoder
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
        done: list[Trajectory | None] = [None] * len(requests)
        with closing(self.stream(requests, on_turn)) as finished:
            for index, trajectory in finished:
                done[index] = trajectory
                if on_finish is not None:
                    on_finish(trajectory)
        return [trajectory for trajectory in done if trajectory is not None]

    def stream(
        self,
        requests: Iterable[RolloutRequest],
        on_turn: Callable[[Trajectory, TurnRecord], None] | None = None,
    ) -> Generator[tuple[int, Trajectory], None, None]:
        """Yields (index of the request, trajectory) as each trajectory ends.

        Requests are taken from the iterable only as the engine has room, and nothing keeps a trajectory after it has been
        yielded, so that memory does not grow with the number of requests.

        Raises:
            ValueError: if a request has the trajectory id of one that is not finished.
        """
        source = iter(requests)
        run = self.open(on_turn)
        try:
            exhausted = False
            while not exhausted or run.unfinished:
                while not exhausted and run.has_room:
                    request = next(source, None)
                    exhausted = request is None
                    if request is not None:
                        run.add(request)
                yield from run.step()
        finally:
            run.close()

    def open(self, on_turn: Callable[[Trajectory, TurnRecord], None] | None = None) -> RolloutRun:
        """Starts a run to which requests are added while it goes on. Only one run may be open on an engine."""
        # Request ids are idempotency keys of the service: two runs over the same questions must not share them.
        self._run_name = uuid.uuid4().hex[:12]
        self._stats = RolloutStats(0, self.engine.stats)
        return RolloutRun(self, _RunState(on_turn))

    def _close(self, state: _RunState) -> None:
        for attempt in state.running.values():
            self.engine.free_sequence(attempt.id)
        used = [attempt.id.session_id for attempt in state.running.values() if attempt.used_session]
        self._close_sessions(state, [*state.finished_sessions, *used])
        state.running, state.waiting, state.outbox = {}, {}, []
        self._stats.finish(self.engine.stats)

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
        try:
            builder = TrajectoryBuilder(
                self.prompt_encoder,
                request.question,
                request.trajectory_id,
                limits=request.limits,
                prompt=request.prompt,
            )
        except (ValueError, TypeError, OSError) as error:  # an image or a text that cannot be encoded
            self._drop_row(state, index, request, error)
            return
        attempt_id = AttemptId(self._run_name, request.trajectory_id, index, attempt_number)
        attempt = _Attempt(attempt_id, request, builder)
        state.running[attempt_id] = attempt
        self.engine.add_sequence(attempt_id, request.key)
        self._request_next_turn(state, attempt, builder.prompt)

    def _drop_row(self, state: _RunState, index: int, request: RolloutRequest, error: Exception) -> None:
        """Ends a request whose prompt cannot be encoded: its row costs no other trajectory."""
        _log.warning("question %s dropped: %s", request.question.id, error)
        trajectory = Trajectory(
            request.trajectory_id, request.question, finish=Finish.LOST, dropped=True, row_error=str(error)
        )
        self._stats.dropped += 1
        self._hand_over(state, index, trajectory)

    def _request_next_turn(self, state: _RunState, attempt: _Attempt, segment: Segment | None) -> None:
        """Appends `segment` (prompt or observation) and requests the next turn, unless the trajectory is over."""
        if attempt.builder.finish is not None or segment is None:
            self._finish(state, attempt)
            return
        self.engine.append(attempt.id, segment.token_ids, segment.images)
        temperature = attempt.request.temperature
        temperature = self.sampling.temperature if temperature is None else temperature
        self.engine.request_turn(attempt.id, attempt.builder.max_new_tokens, temperature)

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
        trajectory = attempt.builder.trajectory()
        request_id = f"{attempt.id.session_id}:{len(trajectory.turns)}"
        context = RequestContext(
            request_id,
            attempt.id.session_id,
            attempt.request.question,
            tuple(image for record in trajectory.turns for image in record.images),
            self.agent,
            self.prompt_encoder.image_config,
            self.tools_config,
        )
        tool = next(tool for tool in trajectory.tools if tool.name == turn.kind)
        request = make_request(tool, turn, context)
        if isinstance(request, Refusal):
            refused = ToolResult(request_id, tool.name, Status.REFUSED, message=request.message)
            self._append_observation(state, attempt, refused)
            return
        attempt.used_session |= isinstance(request, ExecRequest)
        state.outbox.append(request)
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
        if result.status.is_infrastructure_failure:
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
        if attempt.id.number < self.tools_config.retries:
            self._stats.retries += 1
            self._remove(state, attempt)
            state.queue.appendleft((attempt.id.index, attempt.request, attempt.id.number + 1))
        else:
            attempt.builder.mark_lost()
            self._stats.dropped += 1
            self._finish(state, attempt)

    def _finish(self, state: _RunState, attempt: _Attempt) -> None:
        self._report_turns(state, attempt)
        trajectory = attempt.builder.trajectory()
        self._remove(state, attempt)
        self._hand_over(state, attempt.id.index, trajectory)

    def _hand_over(self, state: _RunState, index: int, trajectory: Trajectory) -> None:
        state.ids.discard(trajectory.id)
        state.finished.append((index, trajectory))

    def _remove(self, state: _RunState, attempt: _Attempt) -> None:
        del state.running[attempt.id]
        self.engine.free_sequence(attempt.id)
        if attempt.used_session:
            state.finished_sessions.append(attempt.id.session_id)

    def _report_turns(self, state: _RunState, attempt: _Attempt) -> None:
        trajectory = attempt.builder.trajectory()
        for record in trajectory.turns[attempt.reported_turns :]:
            attempt.reported_turns += 1
            if state.on_turn is not None:
                state.on_turn(trajectory, record)

    def _close_sessions(self, state: _RunState, names: Sequence[str]) -> None:
        if names:
            self.tools.close_sessions(list(names))


class RolloutRun:
    """An open run of a scheduler: requests are added and cancelled between its steps. Made by `RolloutScheduler.open`."""

    def __init__(self, scheduler: RolloutScheduler, state: _RunState):
        self._scheduler, self._state = scheduler, state

    @property
    def unfinished(self) -> int:
        """Number of requests whose trajectories have not been returned."""
        return len(self._state.queue) + len(self._state.running) + len(self._state.finished)

    @property
    def has_room(self) -> bool:
        """True if another request would start in the next step, instead of waiting in a queue."""
        engine = self._scheduler.engine
        return engine.waiting + len(self._state.queue) < 2 * engine.config.prefill_rows

    def add(self, request: RolloutRequest) -> int:
        """Queues a request and returns its index: 0, 1, …

        Raises:
            ValueError: an unfinished request has the same trajectory id.
        """
        state = self._state
        if request.trajectory_id in state.ids:
            raise ValueError(f"trajectory {request.trajectory_id!r} is running already")
        index = state.added
        state.added += 1
        state.ids.add(request.trajectory_id)
        state.queue.append((index, request, 0))
        self._scheduler._stats.trajectories += 1
        return index

    def cancel(self, index: int) -> None:
        """Ends a request without a trajectory; nothing happens if it has finished."""
        state = self._state
        for entry in [entry for entry in state.queue if entry[0] == index]:
            state.queue.remove(entry)
            state.ids.discard(entry[1].trajectory_id)
        for attempt in [attempt for attempt in state.running.values() if attempt.id.index == index]:
            for request_id in [id_ for id_, waiting in state.waiting.items() if waiting is attempt]:
                del state.waiting[request_id]
                state.expired.add(request_id)
            self._scheduler._remove(state, attempt)
            state.ids.discard(attempt.request.trajectory_id)
        state.finished = [entry for entry in state.finished if entry[0] != index]

    def sampled(self, index: int) -> tuple[list[int], list[float]]:
        """Returns ids and log-probs that the current turn of a request has so far; both empty between turns."""
        for attempt in self._state.running.values():
            if attempt.id.index == index:
                return self._scheduler.engine.sampled(attempt.id)
        return [], []

    def step(self) -> list[tuple[int, Trajectory]]:
        """Advances the run by one step of the engine; returns (index, trajectory) of those that ended."""
        state = self._state
        if state.queue or state.running:
            self._scheduler._step(state)
        finished, state.finished = state.finished, []
        return finished

    def close(self) -> None:
        """Frees the sequences and sandbox sessions of everything that still runs."""
        self._scheduler._close(self._state)
