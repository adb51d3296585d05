"""Records and replays the searches of an evaluation, between the scheduler and the tools.

`eval.search_record` chooses what a search does: `record` asks the search service and stores the result; `replay` takes stored
results only; `auto` asks for what is not stored. Equal searches of one run are asked once, so that all answers see the same
results. A search that `replay` does not find is refused, which the policy observes, and the answer counts as **failed**: the
policy had fewer means than the protocol gives it, so that its answer is neither right nor wrong.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from dv2_jax.agent.tools.base import LocalCall
from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import Config, ConfigError
from dv2_jax.evaluation.answerers.answerer import Answer, Answerer, AnswerRequest
from dv2_jax.evaluation.search_records import SearchKey, SearchRecords, SearchRequest, search_key
from dv2_jax.rollout.scheduler import ToolBackend
from tools_service.client import ImageSearchRequest, Request, Status, TextSearchRequest, ToolResult

OFF, RECORD, REPLAY, AUTO = "off", "record", "replay", "auto"
NOT_RECORDED = "this search is not among the recorded ones"
_RECORDED = frozenset({Status.OK, Status.REFUSED})  # the outcomes that a repetition would have too
_log = logging.getLogger(__name__)


class RecordedSearches:
    """A tool backend that answers searches from records, and records those that it passes on."""

    def __init__(self, tools: ToolBackend, records: SearchRecords, mode: str):
        self.tools, self.records, self.mode = tools, records, mode
        self.found = self.searched = self.missing = 0  # searches answered from records, by the service, not at all
        self._ready: list[ToolResult] = []
        self._asked: dict[str, SearchRequest] = {}  # by id, the searches that the service is answering
        self._waiting: dict[tuple[SearchKey, int], list[SearchRequest]] = {}  # equal searches, for the same result
        self._fresh: set[SearchKey] = set()  # searches that this run has recorded

    def submit(self, requests: Sequence[Request | LocalCall]) -> None:
        """Starts requests without waiting; each of them yields exactly one result from `poll`."""
        passed: list[Request | LocalCall] = []
        for request in requests:
            if not isinstance(request, (TextSearchRequest, ImageSearchRequest)):
                passed.append(request)
            elif result := self._stored(request):
                self.found += 1
                self._ready.append(result)
            elif self.mode == REPLAY:
                self._refuse(request)
            elif self._is_first(request):
                passed.append(request)
        if passed:
            self.tools.submit(passed)

    def _stored(self, request: SearchRequest) -> ToolResult | None:
        if self.mode == RECORD and search_key(request) not in self._fresh:
            return None
        return self.records.find(request)

    def _refuse(self, request: SearchRequest) -> None:
        self.missing += 1
        if self.missing == 1:
            query = request.query if isinstance(request, TextSearchRequest) else "by image"
            _log.warning("a search is not recorded, and its answer counts as failed: %s", query)
        self._ready.append(ToolResult(request.request_id, request.kind, Status.REFUSED, message=NOT_RECORDED))

    def _is_first(self, request: SearchRequest) -> bool:
        """Returns False if the service is answering an equal search, whose result this request will have."""
        place = search_key(request), request.k
        if place in self._waiting:
            self._waiting[place].append(request)
            return False
        self._waiting[place] = []
        self._asked[request.request_id] = request
        return True

    def poll(self, timeout_s: float = 0.0) -> list[ToolResult]:
        """Returns the results that have arrived; waits up to `timeout_s` for the first.

        Raises:
            RunFailure: a result cannot be recorded.
        """
        ready, self._ready = self._ready, []
        results = self.tools.poll(0.0 if ready else timeout_s)
        for result in results:
            ready += self._arrived(result)
        return ready

    def _arrived(self, result: ToolResult) -> list[ToolResult]:
        request = self._asked.pop(result.request_id, None)
        if request is None:
            return [result]
        place = search_key(request), request.k
        others = self._waiting.pop(place, [])
        if result.status in _RECORDED:
            self.searched += 1
            self.records.add(request, result)
            self._fresh.add(place[0])
        return [result, *(replace(result, request_id=other.request_id, cached=True) for other in others)]

    def pending(self) -> int:
        """Returns the number of submitted requests whose results have not been polled."""
        waiting = sum(map(len, self._waiting.values()))
        return len(self._ready) + waiting + self.tools.pending()  # type: ignore[attr-defined]

    def close_sessions(self, ids: Sequence[str]) -> None:
        """Ends sandbox sessions."""
        self.tools.close_sessions(ids)

    def info(self) -> dict:
        """Returns the state of the tools service."""
        return self.tools.info()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Closes the connection to the tools service."""
        self.tools.close()  # type: ignore[attr-defined]

    def summary(self) -> str:
        """Returns one line: how many searches were answered from records, searched and missing."""
        return f"searches: {self.found:,} from records, {self.searched:,} searched, {self.missing:,} not recorded"


class ReplayedAnswers(Answerer):
    """Marks the answers of another answerer as failed if a search of theirs was not recorded."""

    def __init__(self, answerer: Answerer):
        self.answerer = answerer

    def answers(self, requests: Iterable[AnswerRequest]) -> Generator[Answer, None, None]:
        with closing(self.answerer.answers(requests)) as answers:
            for answer in answers:
                missing = not answer.failure and misses_search(answer.trajectory)
                yield (
                    replace(answer, failure=f"{NOT_RECORDED} (eval.search_record=auto searches)") if missing else answer
                )


def misses_search(trajectory: Trajectory) -> bool:
    """Returns whether a search of a trajectory was refused because it is not recorded."""
    return any(
        turn.status is Status.REFUSED and turn.observation is not None and NOT_RECORDED in turn.observation
        for turn in trajectory.turns
    )


def open_search_records(config: Config, run_dir: Path, questions: Iterable[Sequence]) -> SearchRecords | None:
    """Returns the records of a run; None if `eval.search_record` is off.

    Args:
        questions: the questions of each benchmark; those with texts in memory make released results known.

    Raises:
        ConfigError: records cannot be read, or `replay` has none.
    """
    if config.eval.search_record == OFF:
        return None
    started = time.perf_counter()
    records = SearchRecords.of_run(config, run_dir)
    if config.eval.search_record == REPLAY and not len(records):
        raise ConfigError(
            f"eval.search_record = {REPLAY}: there is no recorded search in {config.eval.search_records or records.folder};"
            f" name a folder or a released file with eval.search_records, or use {AUTO}"
        )
    for part in questions:
        records.add_rows(getattr(part, "texts", ()))
    _log.info("%d recorded searches, read in %.1f s", len(records), time.perf_counter() - started)
    return records


def with_records(tools: ToolBackend, records: SearchRecords | None, mode: str) -> ToolBackend:
    """Returns a backend that records or replays the searches of `tools`; `tools` itself without records."""
    return tools if records is None else RecordedSearches(tools, records, mode)
