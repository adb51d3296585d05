"""Answers chat requests: admits them, hands them to the engine thread, and turns its events into responses.

Everything here runs in the event loop, except encoding, which has a thread of its own, and the engine.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.serving import api_error, chat_response
from dv2_jax.serving.api_error import ApiError
from dv2_jax.serving.chat_request import ChatRequest
from dv2_jax.serving.chat_response import Choice, ResponseHead
from dv2_jax.serving.engine_thread import (
    EngineThread,
    Job,
    JobEvent,
    JobFailed,
    TokensSampled,
    TrajectoryEnded,
    TurnEnded,
)
from dv2_jax.serving.request_metrics import RequestMetrics
from dv2_jax.serving.served_policy import EncodedPrompt, ServedPolicy, sampled_turn
from dv2_jax.serving.text_stream import TextStream

ENCODING_THREADS = 2


@dataclass(eq=False)
class _Answer:
    """State of one choice while it is generated."""

    index: int
    job: Job
    stream: TextStream | None  # of a raw turn
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    choice: Choice | None = None  # set at its end
    trajectory: Trajectory | None = None


class PendingResponse:
    """The answers to one admitted request. `close` must be called, whatever happens."""

    def __init__(self, service: ChatService, request: ChatRequest):
        self.request, self._service = request, service
        self._policy = service.policy
        self._events: asyncio.Queue[tuple[_Answer, JobEvent]] = asyncio.Queue()
        self._answers: list[_Answer] = []
        self._prompt: EncodedPrompt | None = None
        self._started = time.perf_counter()
        self._is_closed = False
        self.head = ResponseHead(
            f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), request.model, self._policy.fingerprint
        )  # fmt: skip

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt; 0 before `start`."""
        return 0 if self._prompt is None else len(self._prompt.segment.token_ids)

    async def start(self) -> None:
        """Encodes the prompt and starts the choices. Raises ApiError if the prompt cannot be used."""
        loop = asyncio.get_running_loop()
        self._prompt = await loop.run_in_executor(self._service.encoders, self._policy.encode, self.request)
        is_raw = self._policy.is_raw(self.request)
        reports_tokens = is_raw and (self.request.stream or bool(self.request.stop))
        for index in range(self.request.n):
            rollout = self._policy.rollout_request(self.request, self._prompt, index)
            stream = self._policy.text_stream(self.request) if is_raw else None
            answer = _Answer(index, Job(rollout, lambda event: None, reports_tokens), stream)
            answer.job.listener = self._listener(loop, answer)
            self._answers.append(answer)
            self._service.engine.submit(answer.job)

    def _listener(self, loop: asyncio.AbstractEventLoop, answer: _Answer):
        def listen(event: JobEvent) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, (answer, event))

        return listen

    def abort(self, error: ApiError) -> None:
        """Ends the response with an error, from the event loop."""
        for answer in self._answers:
            self._events.put_nowait((answer, JobFailed(error)))

    def close(self) -> None:
        """Frees the engine's sequences and the place in the queue; closing twice has no effect."""
        if self._is_closed:
            return
        self._is_closed = True
        for answer in self._answers:
            if answer.choice is None:
                self._service.engine.cancel(answer.job)
        self._service.release(self)

    async def complete(self) -> dict:
        """Waits for all choices and returns the body of the response. Raises ApiError."""
        async for _ in self._deltas():
            pass
        prompt_ids = None
        if self.request.return_token_ids and self._prompt is not None:
            prompt_ids = self._prompt.segment.token_ids
        return chat_response.completion(self.head, self._choices(), self.prompt_tokens, prompt_ids)

    async def chunks(self) -> AsyncIterator[dict]:
        """Yields the chunks of a streamed response as they arise. Raises ApiError."""
        for index in range(self.request.n):
            yield chat_response.chunk(self.head, index, {"role": "assistant", "content": ""})
        async for answer, delta, logprobs in self._deltas():
            if delta or logprobs:
                yield chat_response.chunk(self.head, answer.index, delta, logprobs=logprobs)
            if answer.choice is not None:
                choice = answer.choice
                yield chat_response.chunk(self.head, answer.index, {}, choice.finish_reason, **choice.extra)
        if self.request.include_usage:
            yield chat_response.usage_chunk(self.head, self.prompt_tokens, self._choices())

    def _choices(self) -> list[Choice]:
        return [answer.choice for answer in self._answers if answer.choice is not None]

    async def _deltas(self) -> AsyncIterator[tuple[_Answer, dict[str, str], dict | None]]:
        """Yields (choice, new text by field, its log-probs) until all choices have ended."""
        left = len(self._answers)
        while left:
            answer, event = await self._events.get()
            if answer.choice is not None:
                continue  # tokens after a stop string
            if isinstance(event, JobFailed):
                raise event.error
            if isinstance(event, TurnEnded):
                if answer.stream is None:
                    yield answer, {"reasoning_content": chat_response.turn_text(event.turn)}, None
                continue
            delta, logprobs = self._advance(answer, event)
            left -= answer.choice is not None
            yield answer, delta, logprobs

    def _advance(self, answer: _Answer, event: TokensSampled | TrajectoryEnded) -> tuple[dict[str, str], dict | None]:
        """Takes new tokens, or the end, and returns the new text and its log-probs; sets `choice` at the end."""
        if isinstance(event, TrajectoryEnded):
            answer.trajectory = event.trajectory
            if event.trajectory.dropped:
                raise api_error.tools_unavailable()
        if answer.stream is None:
            assert isinstance(event, TrajectoryEnded)  # the agent does not report tokens
            answer.choice = self._agent_choice(event.trajectory)
            self._service.record(answer.choice, event.trajectory)
            return {"content": answer.choice.content}, None
        return self._advance_raw(answer, answer.stream, event)

    def _advance_raw(
        self, answer: _Answer, stream: TextStream, event: TokensSampled | TrajectoryEnded
    ) -> tuple[dict[str, str], dict | None]:
        before = stream.tokens
        if isinstance(event, TrajectoryEnded):
            token_ids, logprobs = sampled_turn(event.trajectory)
            token_ids, logprobs = token_ids[len(answer.token_ids) :], logprobs[len(answer.logprobs) :]
        else:
            token_ids, logprobs = event.token_ids, event.logprobs
        text = stream.push(token_ids)
        used = stream.tokens - before
        answer.token_ids += token_ids[:used]
        answer.logprobs += logprobs[:used]
        if isinstance(event, TrajectoryEnded) or stream.stopped_by is not None:
            text += stream.finish()
            answer.choice = self._raw_choice(answer, stream)
            if answer.trajectory is None:
                self._service.engine.cancel(answer.job)
            self._service.record(answer.choice, answer.trajectory)
        new_logprobs = None
        if self.request.logprobs and used:
            new_logprobs = chat_response.logprobs_content(token_ids[:used], logprobs[:used], self._policy.tokenizer)
        return ({"content": text} if text else {}), new_logprobs

    def _agent_choice(self, trajectory: Trajectory) -> Choice:
        seconds = time.perf_counter() - self._started
        choice = chat_response.agent_choice(trajectory, self._policy.tokenizer, self.request.stop, seconds)
        if self.request.return_token_ids:
            choice.extra.update(chat_response.trajectory_ids(trajectory))
        return choice

    def _raw_choice(self, answer: _Answer, stream: TextStream) -> Choice:
        stopped = stream.stopped_by is not None or self._policy.turn_is_complete(answer.token_ids)
        extra: dict = {"stop_reason": stream.stopped_by}
        if self.request.return_token_ids:
            extra["token_ids"] = answer.token_ids
        logprobs = None
        if self.request.logprobs:
            logprobs = chat_response.logprobs_content(answer.token_ids, answer.logprobs, self._policy.tokenizer)
        finish_reason = "stop" if stopped else "length"
        return Choice(stream.text, finish_reason, len(answer.token_ids), logprobs=logprobs, extra=extra)


class ChatService:
    """Admits requests and keeps track of those that are being answered."""

    def __init__(self, policy: ServedPolicy, engine: EngineThread, metrics: RequestMetrics):
        self.policy, self.engine, self.metrics = policy, engine, metrics
        self.encoders = ThreadPoolExecutor(ENCODING_THREADS, thread_name_prefix="encode")
        self.is_draining = False
        self._open: dict[PendingResponse, int] = {}  # with the number of choices
        self._answers_per_s = 0.0  # moving average, for retry-after
        self._last_answer = time.monotonic()
        metrics.gauge("dv2_serve_answers_in_progress", "Answers generated or waiting", lambda: self.in_progress)
        metrics.gauge("dv2_serve_capacity", "Answers that may be generated or wait", lambda: policy.capacity)

    @property
    def in_progress(self) -> int:
        """The number of answers that are generated or wait."""
        return sum(self._open.values())

    def check_admission(self, choices: int = 1) -> None:
        """Raises ApiError with status 503 while the server drains, or 429 if the queue has no room for the choices."""
        if self.is_draining:
            raise api_error.draining()
        if self.in_progress + choices > self.policy.capacity:
            rate = max(self._answers_per_s, 0.1)
            raise api_error.overloaded(min(30.0, max(api_error.OVERLOADED_RETRY_S, choices / rate)))

    def admit(self, request: ChatRequest) -> PendingResponse:
        """Reserves the places of a request. Raises ApiError; see `check_admission`."""
        self.check_admission(request.n)
        pending = PendingResponse(self, request)
        self._open[pending] = request.n
        return pending

    def release(self, pending: PendingResponse) -> None:
        """Frees the places of a request; called by `PendingResponse.close`."""
        self._open.pop(pending, None)

    def record(self, choice: Choice, trajectory: Trajectory | None) -> None:
        """Counts an answer."""
        now = time.monotonic()
        rate = 1 / max(now - self._last_answer, 1e-3)
        self._answers_per_s += 0.1 * (rate - self._answers_per_s)
        self._last_answer = now
        self.metrics.record_answer(choice.completion_tokens, 0 if trajectory is None else trajectory.tool_calls)

    def abort_all(self) -> None:
        """Ends all running responses with status 503."""
        for pending in list(self._open):
            pending.abort(api_error.draining())

    def close(self) -> None:
        """Stops the engine thread and the encoders."""
        self.engine.stop()
        self.encoders.shutdown(wait=False, cancel_futures=True)
