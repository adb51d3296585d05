"""One policy with one set of tools on one benchmark: finds what is missing in the records, and obtains only that.

The order is: read the index, compare stored answers with the configuration, score what has no score, answer what is
missing. Every answer is stored before anything else happens to it, and scored in a thread while others are answered.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from dv2_jax.agent.tools.tool_registry import run_tools
from dv2_jax.agent.trajectory import Finish, Trajectory
from dv2_jax.config import AgentConfig, Config
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.evaluation.answer_store import AnswerStore, StoredAnswer, answer_info, scored_stats
from dv2_jax.evaluation.answerers.answerer import Answer, Answerer, AnswerRequest, answer_id
from dv2_jax.evaluation.benchmark_run import BenchmarkRun
from dv2_jax.evaluation.benchmarks.benchmark import Score
from dv2_jax.evaluation.prompt_digest import PromptDigest
from dv2_jax.evaluation.records import AnswerInfo, ScoreRecord
from dv2_jax.evaluation.scoring import AnswerScorer, RecordingJudge, ScoredAnswer
from dv2_jax.evaluation.stage_plan import Stage
from dv2_jax.evaluation.tool_sets import stage_agent
from dv2_jax.parallel import distributed
from dv2_jax.rollout.outcome import TrajectoryStats

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Missing:
    """An answer to obtain: its question by index, and the number of the attempt."""

    index: int
    sample: int
    attempt: int


@dataclass(frozen=True)
class Outcome:
    """The statistics of an answer, and its scores by the names of `eval.scorers`. Small enough to exchange."""

    stats: TrajectoryStats
    scores: dict[str, Score]
    info: AnswerInfo


@dataclass
class StageRun:
    """The answers of one stage to one benchmark. Every host has those of its shard of the (question, sample) pairs.

    Attributes:
        name: of the record files.
        model: of the records: `model.init` or the endpoint's model.
        weights: fingerprint of the weights.
        changes: reasons for which stored answers are not used, with their numbers.
    """

    stage: Stage
    part: BenchmarkRun
    config: Config
    run_dir: Path
    name: str
    model: str
    weights: str
    tokenizer: Tokenizer | None
    changes: Counter[str] = field(default_factory=Counter)
    missing: list[Missing] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.agent: AgentConfig = stage_agent(self.config.agent, self.part.benchmark, self.stage.tool_set)
        self.tools = run_tools(self.agent)
        settings = {"refused": True} if self.stage.refuses_tools else {}
        if self.config.eval.endpoint:
            settings["max_tokens"] = self.config.eval.endpoint_max_tokens
        self.digest = PromptDigest(self.config, self.agent, self.config.eval.temperature, **settings)
        host = distributed.process_index()
        self.store = AnswerStore(self.run_dir, self.name, self.tokenizer, self.tools, host)
        self._open: dict[str, tuple[Missing, Question]] = {}  # requests on their way, with their questions as loaded

    @property
    def own_keys(self) -> list[tuple[int, int]]:
        """The (index of the question, sample) pairs of this host, in order."""
        samples = self.config.eval.samples
        pairs = [(index, sample) for index in range(len(self.part.ids)) for sample in range(samples)]
        return distributed.shard_for_process(pairs)

    def prepare(self, *, retry_failed: bool = False, any_weights: bool = False) -> None:
        """Reads the index and finds what is missing: no answer, one to another prompt, or a failed attempt of several.

        With `run.resume` off, stored records do not count.

        Args:
            retry_failed: one more attempt for answers that have failed `eval.attempts` times.
            any_weights: use answers of weights that have changed since.
        """
        if self.config.run.resume:
            self.store.load()
        self.missing, self.changes = [], Counter()
        for index, sample in self.own_keys:
            stored = self.store.answers.get((self.part.ids[index], sample))
            if stored is None:
                self.missing.append(Missing(index, sample, 1))
            elif change := self._change(stored, index, any_weights=any_weights):
                self.changes[change] += 1
                del self.store.answers[stored.info.key]
                self.missing.append(Missing(index, sample, 1))
            elif stored.info.failure and (stored.info.attempt < self.config.eval.attempts or retry_failed):
                self.missing.append(Missing(index, sample, stored.info.attempt + 1))

    def _change(self, stored: StoredAnswer, index: int, *, any_weights: bool) -> str:
        """Returns the difference between a stored answer and one of this configuration; empty if there is none."""
        info, tools = stored.info, tuple(tool.name for tool in self.tools)
        if info.model != self.model:
            return f"the model is {self.model}, not {info.model}"
        if info.weights != self.weights and not any_weights:
            return f"the weights of {self.model} have changed"
        if info.tools != tools:
            return f"the tools are {', '.join(tools) or 'none'}, not {', '.join(info.tools) or 'none'}"
        row = self.part.row(index)
        digest = "" if row.asked is None else self.digest(row.asked)
        return "" if info.prompt_digest == digest else "their prompts have changed"

    def answer(
        self, answerer: Answerer, scorer: AnswerScorer, stop: Stop, on_answer: Callable[[AnswerInfo], None]
    ) -> None:
        """Obtains what is missing, in rounds: a failed answer is attempted again at the end, `eval.attempts` times.

        Args:
            stop: polled before each request; True ends the run after the answers that are on their way.
            on_answer: called with the facts of each stored answer.

        Raises:
            ServiceOutage: judge, endpoint or tools service gave no results for too long.
            RunFailure: an answer cannot be stored.
        """
        while self.missing and not stop():
            round_, self.missing = self.missing, []
            with closing(answerer.answers(self._requests(round_, stop))) as answers:
                for answer in answers:
                    self._finish(answer, scorer, on_answer)
        scorer.finish()

    def _requests(self, round_: list[Missing], stop: Stop) -> Iterator[AnswerRequest]:
        for position, entry in enumerate(round_):
            if stop():
                self.missing += round_[position:]
                return
            row = self.part.row(entry.index)
            if row.asked is None or row.loaded is None:
                self._store_unreadable(entry, row.failure)
                continue
            seed = sample_seed(row.asked.id, entry.sample)
            request = AnswerRequest(row.asked, entry.sample, entry.attempt, seed, self.digest(row.asked))
            self._open[request.id] = entry, row.loaded
            yield request

    def _store_unreadable(self, entry: Missing, failure: str) -> None:
        """Stores a failed answer to a row that cannot be read: it costs no other row."""
        question = Question(self.part.ids[entry.index], "unreadable", "reason", "", (), "")
        trajectory = Trajectory(
            answer_id(question.id, entry.sample), question, finish=Finish.LOST, dropped=True, row_error=failure,
            tools=self.tools,
        )  # fmt: skip
        answer = Answer(AnswerRequest(question, entry.sample, self.config.eval.attempts), trajectory, failure)
        self._add(answer)

    def _add(self, answer: Answer) -> StoredAnswer:
        info = answer_info(
            answer, self.part.name, self.model, self.tools, None if answer.text else self.tokenizer, self.weights
        )
        return self.store.add_answer(answer, info)

    def _finish(self, answer: Answer, scorer: AnswerScorer, on_answer: Callable[[AnswerInfo], None]) -> None:
        entry, question = self._open.pop(answer.request.id)
        stored = self._add(answer)
        if answer.failure:
            if entry.attempt < self.config.eval.attempts:
                self.missing.append(replace(entry, attempt=entry.attempt + 1))
        else:
            text = answer.text or answer.trajectory.response_text(self.tokenizer)
            scorer.submit(ScoredAnswer(question, stored.info, text, answer.trajectory), list(scorer.names))
        on_answer(stored.info)

    def score_stored(self, scorer: AnswerScorer, *, again: bool = False) -> int:
        """Scores the stored answers that have no valid score, or all of them; returns their number.

        Raises:
            ServiceOutage: the judge gave no verdict for too long.
        """
        count = 0
        for index, sample in self.own_keys:
            stored = self.store.answers.get((self.part.ids[index], sample))
            if stored is None or stored.info.failure:
                continue
            names = list(scorer.names) if again else scorer.missing(stored.info, self.store.scores)
            if names:
                question, record = self.part.row(index).loaded, stored.record()
                if question is None:
                    continue
                trajectory = self.store.trajectory(question, record)
                text = record["answer"].get("text") or trajectory.response_text(self.tokenizer)
                scorer.submit(ScoredAnswer(question, stored.info, text, trajectory), names)
                count += 1
        scorer.finish()
        return count

    def scorer(self, make_judge: Callable[[Question], RecordingJudge] | None = None) -> AnswerScorer:
        """Returns the threads that score the answers of this stage."""
        return AnswerScorer(self.part.benchmark, self.config, self.tokenizer, self.store.add_score, make_judge)

    def outcomes(self, scorer: AnswerScorer) -> list[Outcome | None]:
        """Returns the outcome of each (question, sample) pair of this host, in order; None where there is no answer."""
        first = next(iter(scorer.names))
        found: list[Outcome | None] = []
        for index, sample in self.own_keys:
            stored = self.store.answers.get((self.part.ids[index], sample))
            if stored is None:
                found.append(None)
                continue
            records = {name: self._score_of(stored, full, scorer) for name, full in scorer.names.items()}
            scores = {name: self._score(stored, record) for name, record in records.items()}
            found.append(Outcome(scored_stats(stored.stats, records[first]), scores, stored.info))
        return found

    def _score_of(self, stored: StoredAnswer, full: str, scorer: AnswerScorer) -> ScoreRecord | None:
        record = self.store.scores.get((*stored.info.key, full))
        return record if record is not None and record.basis == scorer.basis(stored.info) else None

    def _score(self, stored: StoredAnswer, record: ScoreRecord | None) -> Score:
        info = stored.info
        if info.failure or record is None:
            reason = info.failure or "not scored"
            return Score(None, reason, question_id=info.question_id, sample=info.sample, group=stored.stats.skill)
        return record.score


def sample_seed(question_id: str, sample: int) -> int:
    """Returns the seed of a sample: 31 bits that depend on nothing but the question and the index of the sample."""
    return int.from_bytes(hashlib.sha256(f"{question_id}#{sample}".encode()).digest()[:4]) & 0x7FFFFFFF
