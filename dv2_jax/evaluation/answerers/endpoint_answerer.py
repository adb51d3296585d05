"""Answers with a model behind an OpenAI-compatible endpoint, with tools (our protocol as text) or without.

Without tools, an answer is one request: the question as the benchmark asks it, with its images. With tools, the model gets
the system prompt of the protocol and writes calls as text; its turns are parsed, its calls are executed and observations are
rendered as those of the own engine are. Requests to the endpoint wait in threads; everything else happens in the thread of
the caller.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dv2_jax.agent.text_trajectory import TextTrajectory, turns_text
from dv2_jax.agent.tools.base import LocalCall, ParsedTurn, Refusal, RequestContext
from dv2_jax.agent.trajectory import Finish, Trajectory, TurnRecord
from dv2_jax.config import AgentConfig, ImageConfig, ToolsConfig
from dv2_jax.endpoint import ChatEndpoint, ChatReply, EndpointUnavailable
from dv2_jax.evaluation.answerers.answerer import Answer, Answerer, AnswerRequest
from dv2_jax.rollout.tool_requests import AttemptId, ToolBackend, make_request
from tools_service.client import ExecRequest, Request, Status, ToolResult

LOST = "the tools service lost the trajectory"
_TOOL_POLL_S = 0.02  # interval at which tool results are asked for while requests to the endpoint are open
_REPLY_WAIT_S = 0.5


@dataclass(frozen=True)
class EndpointSampling:
    """Sampling parameters of an evaluated endpoint."""

    temperature: float = 0.0
    max_tokens: int = 4096  # per reply
    concurrency: int = 16  # questions at the same time


def request_key(request: AnswerRequest) -> str:
    """Returns the key of a request, by which equal requests of two samples are two requests."""
    return f"sample {request.sample}" if request.sample else ""


def request_parameters(
    sampling: EndpointSampling, request: AnswerRequest, stop_strings: Sequence[str] = (), *, attempt: int = 1
) -> dict[str, Any]:
    """Returns the parameters of a request, as the API names them. Sampled attempts have seeds of their own (32 bits)."""
    seed = (request.seed + (attempt - 1) * (sampling.temperature > 0)) % 2**32
    found = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens, "seed": seed}
    return found | ({"stop": list(stop_strings)} if stop_strings else {})


@dataclass
class _OpenAnswer:
    """State of one attempt to answer a request."""

    id: AttemptId
    request: AnswerRequest
    dialogue: TextTrajectory
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    seconds: float = 0.0  # of requests and tools; as stored with the replies, so that a continued run has the same
    submitted_at: float = 0.0  # time at which the pending tool request was submitted
    used_session: bool = False

    def count(self, reply: ChatReply) -> None:
        self.prompt_tokens += reply.prompt_tokens
        self.cached_tokens += reply.cached_tokens
        self.completion_tokens += reply.completion_tokens
        self.requests += 1
        self.seconds += reply.seconds


class EndpointAnswerer(Answerer):
    """Answers with one model and one set of tools.

    Args:
        agent: tools, prompt and limits of turns and images; token limits are those of `sampling` and of the endpoint.
        tools: client of the tools service; None if `agent.tools` is empty.
    """

    def __init__(
        self,
        endpoint: ChatEndpoint,
        sampling: EndpointSampling,
        agent: AgentConfig,
        image: ImageConfig,
        tools_config: ToolsConfig,
        tools: ToolBackend | None = None,
    ):
        if agent.tools and tools is None:
            raise ValueError(f"the tools {', '.join(agent.tools)} need a client of the tools service")
        self.endpoint, self.sampling, self.agent, self.image = endpoint, sampling, agent, image
        self.tools_config, self.tools = tools_config, tools

    def answers(self, requests: Iterable[AnswerRequest]) -> Generator[Answer, None, None]:
        run = _Run(self)
        try:
            yield from run.answers(iter(requests))
        finally:
            run.close()


class _Run:
    """One call of `EndpointAnswerer.answers`."""

    def __init__(self, answerer: EndpointAnswerer):
        self._settings = answerer
        self._name = uuid.uuid4().hex[:12]  # ids of tool requests are idempotency keys: two runs must not share them
        self._open: dict[AttemptId, _OpenAnswer] = {}
        self._waiting: dict[str, _OpenAnswer] = {}  # by tool request id
        self._again: deque[tuple[AnswerRequest, int, int]] = deque()  # request, index, number of the attempt
        self._finished: list[Answer] = []
        self._asks: queue.SimpleQueue[_OpenAnswer | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[tuple[_OpenAnswer, ChatReply | Exception]] = queue.SimpleQueue()
        self._asking = 0  # answers that wait for a reply
        self._threads: list[threading.Thread] = []
        self._closed = False

    def answers(self, requests: Iterator[AnswerRequest]) -> Iterator[Answer]:
        index, exhausted = 0, False
        while not exhausted or self._open or self._again:
            while len(self._open) + len(self._finished) < self._settings.sampling.concurrency:
                if self._again:
                    self._start(*self._again.popleft())
                    continue
                request = None if exhausted else next(requests, None)
                if request is None:
                    exhausted = True
                    break
                self._start(request, index, 0)
                index += 1
            yield from self._take_finished()
            self._step()
            yield from self._take_finished()

    def close(self) -> None:
        """Ends the threads that wait for nothing, and the sandbox sessions; replies on their way are stored, not used."""
        self._closed = True
        for _ in self._threads:
            self._asks.put(None)
        self._close_sessions([entry for entry in self._open.values() if entry.used_session])
        self._open.clear()

    def _take_finished(self) -> list[Answer]:
        finished, self._finished = self._finished, []
        return finished

    def _start(self, request: AnswerRequest, index: int, number: int) -> None:
        try:
            dialogue = TextTrajectory(request.question, self._settings.agent, request.id)
        except (ValueError, TypeError, OSError) as error:  # an image or a text that cannot be sent
            lost = Trajectory(request.id, request.question, finish=Finish.LOST, dropped=True, row_error=str(error))
            self._finished.append(Answer(request, lost, f"{type(error).__name__}: {error}"))
            return
        entry = _OpenAnswer(AttemptId(self._name, request.id, index, number), request, dialogue)
        self._open[entry.id] = entry
        self._ask(entry)

    def _ask(self, entry: _OpenAnswer) -> None:
        if len(self._threads) < min(len(self._open), self._settings.sampling.concurrency):
            # Daemons: a request that takes minutes does not keep an interrupted process from ending.
            thread = threading.Thread(target=self._work, name="endpoint", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._asking += 1
        self._asks.put(entry)

    def _work(self) -> None:
        while (entry := self._asks.get()) is not None and not self._closed:
            try:
                reply: ChatReply | Exception = self._complete(entry)
            except Exception as error:  # raised again in the thread of the caller
                reply = error
            self._replies.put((entry, reply))

    def _complete(self, entry: _OpenAnswer) -> ChatReply:
        """Returns the reply to the conversation so far.

        A further attempt reuses the stored replies of earlier ones. Where replies are sampled, those that failed (cut, a
        filter) are excepted: the request is then sent with another seed, for which a reply is stored in turn. Greedy replies
        would fail again.
        """
        settings, request = self._settings, entry.request
        attempts = request.attempt if settings.sampling.temperature > 0 else 1
        for attempt in range(1, attempts + 1):
            parameters = request_parameters(settings.sampling, request, entry.dialogue.stop_strings, attempt=attempt)
            reply = settings.endpoint.complete(
                entry.dialogue.messages, allow_empty=True, key=request_key(request), **parameters
            )
            if not reply.failure:
                break
        return reply

    def _step(self) -> None:
        """Waits for a reply or a tool result, and handles all that have arrived."""
        if self._asking:
            try:
                entry, reply = self._replies.get(timeout=_TOOL_POLL_S if self._waiting else _REPLY_WAIT_S)
                self._handle(entry, reply)
                while not self._replies.empty():
                    self._handle(*self._replies.get())
            except queue.Empty:
                pass
        if self._waiting and self._settings.tools is not None:
            for result in self._settings.tools.poll(0.0 if self._asking else _TOOL_POLL_S):
                self._handle_result(result)
            self._expire_requests()

    def _handle(self, entry: _OpenAnswer, reply: ChatReply | Exception) -> None:
        self._asking -= 1
        if isinstance(reply, EndpointUnavailable):
            self._fail(entry, str(reply))
            return
        if isinstance(reply, Exception):
            raise reply
        entry.count(reply)
        if reply.failure:
            self._fail(entry, reply.failure)
            return
        dialogue = entry.dialogue
        if not dialogue.tools:
            self._finish_plain(entry, reply.text)
            return
        turn = dialogue.append_turn(reply.text, reply.stop_reason if reply.knows_stop_reason else "")
        if dialogue.finish is not None:
            self._finish(entry)
        elif turn.calls_tool:
            self._request_tool(entry, turn)
        else:
            dialogue.append_tool_output(None)
            self._ask(entry)

    def _request_tool(self, entry: _OpenAnswer, turn: ParsedTurn) -> None:
        settings, trajectory = self._settings, entry.dialogue.trajectory()
        request_id = f"{entry.id.session_id}:{len(trajectory.turns)}"
        observed = tuple(image for record in trajectory.turns for image in record.images)
        context = RequestContext(
            request_id, entry.id.session_id, entry.request.question, observed, settings.agent, settings.image,
            settings.tools_config,
        )  # fmt: skip
        tool = next(tool for tool in entry.dialogue.tools if tool.name == turn.kind)
        request: Request | LocalCall | Refusal = make_request(tool, turn, context)
        if isinstance(request, Refusal):
            self._observe(entry, ToolResult(request_id, tool.name, Status.REFUSED, message=request.message))
            return
        entry.used_session |= isinstance(request, ExecRequest)
        entry.submitted_at = time.perf_counter()
        self._waiting[request_id] = entry
        assert settings.tools is not None  # checked in the constructor
        settings.tools.submit([request])

    def _handle_result(self, result: ToolResult) -> None:
        entry = self._waiting.pop(result.request_id, None)
        if entry is None:
            return  # timed out, or of an answer that was abandoned
        entry.seconds += result.wall_ms / 1000
        if result.status.is_infrastructure_failure:
            self._retry_or_lose(entry)
        else:
            self._observe(entry, result)

    def _observe(self, entry: _OpenAnswer, result: ToolResult) -> None:
        entry.dialogue.append_tool_output(result, wall_ms=result.wall_ms)
        self._ask(entry)

    def _expire_requests(self) -> None:
        limit = time.perf_counter() - self._settings.tools_config.request_timeout_s
        for request_id in [id_ for id_, entry in self._waiting.items() if entry.submitted_at < limit]:
            self._retry_or_lose(self._waiting.pop(request_id))

    def _retry_or_lose(self, entry: _OpenAnswer) -> None:
        """Starts again after a failure of the tools service; stored replies make the repeated turns cost nothing."""
        if entry.id.number < self._settings.tools_config.retries:
            self._remove(entry)
            self._again.append((entry.request, entry.id.index, entry.id.number + 1))
        else:
            self._fail(entry, LOST)

    def _finish_plain(self, entry: _OpenAnswer, text: str) -> None:
        """Ends an answer without tools. A reply without answer tags is the answer, apart from its thoughts."""
        trajectory = entry.dialogue.trajectory()
        turn = entry.dialogue.append_turn(text)
        trajectory.finish = Finish.ANSWER if text.strip() else Finish.TURN_LIMIT
        trajectory.turns[-1] = TurnRecord(text, "answer" if text.strip() else turn.kind)
        if turn.kind != "answer" and text.strip():
            thoughts, end, rest = text.rpartition("</think>")
            text = f"{thoughts}{end}\n<answer>{rest.strip()}</answer>"
        self._finish(entry, text)

    def _finish(self, entry: _OpenAnswer, text: str = "", failure: str = "") -> None:
        self._remove(entry)
        trajectory = entry.dialogue.trajectory()
        self._finished.append(
            Answer(
                entry.request,
                trajectory,
                failure,
                round(entry.seconds, 3),
                entry.prompt_tokens,
                entry.completion_tokens,
                entry.requests,
                text or turns_text(trajectory.turns),
                entry.cached_tokens,
            )
        )

    def _fail(self, entry: _OpenAnswer, reason: str) -> None:
        entry.dialogue.mark_lost()
        self._finish(entry, failure=reason)

    def _remove(self, entry: _OpenAnswer) -> None:
        del self._open[entry.id]
        if entry.used_session:
            self._close_sessions([entry])

    def _close_sessions(self, entries: list[_OpenAnswer]) -> None:
        if entries and self._settings.tools is not None:
            self._settings.tools.close_sessions([entry.id.session_id for entry in entries])
