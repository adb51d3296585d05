"""Runs the rollout scheduler in one thread, to which requests are added while it generates.

All calls of the engine are made by this thread. Other threads only put commands into its queue; results reach them as
events, through the listener of each job.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from dv2_jax.agent.trajectory import Trajectory, TurnRecord
from dv2_jax.parallel.outage import ServiceOutage
from dv2_jax.rollout.scheduler import RolloutRequest, RolloutRun, RolloutScheduler
from dv2_jax.serving.api_error import ApiError, internal, tools_unavailable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokensSampled:
    """Tokens that a job has sampled since the last event of this kind."""

    token_ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class TurnEnded:
    """A turn of a job with its observation."""

    turn: TurnRecord


@dataclass(frozen=True)
class TrajectoryEnded:
    """The last event of a job that was answered."""

    trajectory: Trajectory


@dataclass(frozen=True)
class JobFailed:
    """The last event of a job that has no answer."""

    error: ApiError


JobEvent = TokensSampled | TurnEnded | TrajectoryEnded | JobFailed


@dataclass(eq=False)
class Job:
    """One trajectory to generate. `listener` is called in the engine thread with each event, and must not block."""

    request: RolloutRequest
    listener: Callable[[JobEvent], None]
    reports_tokens: bool = False
    reported: int = 0  # number of tokens of the current turn that were reported


class EngineThread:
    """Owns an open run of `scheduler`. If a step fails, its jobs get an error and the next jobs a new run."""

    def __init__(self, scheduler: RolloutScheduler, on_answer: Callable[[Trajectory], None] | None = None):
        self._scheduler, self._on_answer = scheduler, on_answer
        self._commands: queue.SimpleQueue[tuple[str, Job | None]] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}  # by index in the run
        self._by_id: dict[str, Job] = {}  # by trajectory id
        self._run: RolloutRun | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job; safe to call from any thread."""
        self._commands.put(("add", job))

    def cancel(self, job: Job) -> None:
        """Ends a job without further events and frees its sequence; nothing happens if it has ended."""
        self._commands.put(("cancel", job))

    def stop(self) -> None:
        """Ends all jobs without further events, and the thread."""
        self._commands.put(("stop", None))
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """True while jobs are processed."""
        return self._thread.is_alive()

    def _work(self) -> None:
        try:
            while self._handle_commands():
                try:
                    self._step()
                except Exception as error:
                    self._fail_all(error)
        finally:
            if self._run is not None:
                self._run.close()

    def _handle_commands(self) -> bool:
        """Handles the commands that have arrived, or waits for one while there is no job. Returns False to stop."""
        while True:
            try:
                command, job = self._commands.get(block=not self._jobs)
            except queue.Empty:
                return True
            if job is None:
                return False
            if command == "add":
                self._add(job)
            else:
                self._cancel(job)

    def _add(self, job: Job) -> None:
        if self._run is None:
            self._run = self._scheduler.open(self._report_turn)
        self._jobs[self._run.add(job.request)] = job
        self._by_id[job.request.trajectory_id] = job

    def _cancel(self, job: Job) -> None:
        for index in [index for index, running in self._jobs.items() if running is job]:
            assert self._run is not None  # it has jobs
            self._run.cancel(index)
            self._remove(index)
        self._close_if_idle()

    def _remove(self, index: int) -> Job:
        job = self._jobs.pop(index)
        del self._by_id[job.request.trajectory_id]
        return job

    def _step(self) -> None:
        run = self._run
        if run is None or not self._jobs:
            return
        for index, trajectory in run.step():
            if index in self._jobs:
                job = self._remove(index)
                if self._on_answer is not None:
                    self._on_answer(trajectory)
                job.listener(TrajectoryEnded(trajectory))
        for index, job in self._jobs.items():
            if job.reports_tokens:
                self._report_tokens(run, index, job)
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        """Closes a run without jobs, which frees its sessions; a run also keeps statistics of each of its requests."""
        if self._run is not None and not self._jobs:
            self._run.close()
            self._run = None

    def _report_tokens(self, run: RolloutRun, index: int, job: Job) -> None:
        token_ids, logprobs = run.sampled(index)
        if len(token_ids) > job.reported:
            job.listener(TokensSampled(token_ids[job.reported :], logprobs[job.reported :]))
            job.reported = len(token_ids)

    def _report_turn(self, trajectory: Trajectory, turn: TurnRecord) -> None:
        job = self._by_id.get(trajectory.id)
        if job is not None:
            job.reported = 0
            job.listener(TurnEnded(turn))

    def _fail_all(self, error: Exception) -> None:
        if isinstance(error, ServiceOutage):
            _log.error("%s", error)
            failure = tools_unavailable()
        else:
            _log.exception("a step of the engine failed")
            failure = internal(error)
        for index in list(self._jobs):
            self._remove(index).listener(JobFailed(failure))
        with suppress(Exception):  # the sequences of the failed run; the error that matters was logged above
            if self._run is not None:
                self._run.close()
        self._run = None
